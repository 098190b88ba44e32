package cli

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/braidnet/braid/netagent/agent"
)

// runFlags declares the settings of `netagent run`; a YAML file may hold the same names.
func runFlags(f *pflag.FlagSet, c *agent.Config) {
	f.StringVar(&c.Node, "node", c.Node, "name of this node in the cluster (default: $NODE_NAME, then the host name)")
	f.StringVar(&c.Manifests, "manifests", c.Manifests, "read the cluster from this folder or file of Kubernetes YAML, watched, instead of the API server")
	f.StringVar(&c.Kubeconfig, "kubeconfig", c.Kubeconfig, "reach the API server by this file (default: the pod's service account)")
	f.StringVar(&c.Context, "context", c.Context, "context of the kubeconfig (default: its current one)")
	f.StringVar(&c.RunDir, "run-dir", c.RunDir, "folder of the agent's socket")
	f.StringVar(&c.StateDir, "state-dir", c.StateDir, "folder of address reservations")
	f.StringVar(&c.CNIConfDir, "cni-conf-dir", c.CNIConfDir, "folder to write "+agent.Conflist+" into; empty = do not")
	f.StringVar(&c.Overlay, "overlay", c.Overlay, "how pods reach other nodes: vxlan, host-gw, udp, ipip, wireguard or none")
	f.IntVar(&c.VNI, "vni", c.VNI, "VXLAN network identifier")
	f.IntVar(&c.Port, "vxlan-port", c.Port, "VXLAN UDP port")
	f.IntVar(&c.UDPPort, "udp-port", c.UDPPort, "UDP port of overlay udp (all nodes alike)")
	f.BoolVar(&c.GBP, "vxlan-gbp", c.GBP, "carry the low 16 bits of packets' marks to the other node (all nodes alike)")
	f.BoolVar(&c.Direct, "direct-routing", c.Direct, "overlays vxlan and ipip: reach nodes on the same link by plain routes, with no tunnel (all nodes alike)")
	f.BoolVar(&c.AllocateNodeCIDRs, "allocate-node-cidrs", c.AllocateNodeCIDRs, "take pod CIDRs for this node out of cluster-cidr where the cluster gives it none")
	f.IntVar(&c.NodeMask4, "node-cidr-mask-size-ipv4", c.NodeMask4, "length of the IPv4 pod CIDR that a node takes, bits")
	f.IntVar(&c.NodeMask6, "node-cidr-mask-size-ipv6", c.NodeMask6, "length of the IPv6 pod CIDR that a node takes, bits")
	f.StringSliceVar(&c.Interface.Iface, "iface", c.Interface.Iface, "devices or addresses of the node that carry packets to other nodes, the first that there is; default is the device of the default route (without these five: the Node's InternalIPs)")
	f.StringArrayVar(&c.Interface.IfaceRegex, "iface-regex", c.Interface.IfaceRegex, "the same by a regular expression of the device's name or address (may be given several times)")
	f.StringVar(&c.Interface.CanReach, "iface-can-reach", c.Interface.CanReach, "the same by an address: the device and source by which the kernel reaches it")
	f.StringVar(&c.Interface.Public4, "public-ip", c.Interface.Public4, "IPv4 address at which other nodes reach this one; on a device of the node, or translated by a router (then with iface)")
	f.StringVar(&c.Interface.Public6, "public-ipv6", c.Interface.Public6, "the same for IPv6")
	f.BoolVar(&c.PathChecks, "path-checks", c.PathChecks, "find out with ICMP echoes whether the largest packets of pods reach each other node, and name those that they do not reach")
	f.IntVar(&c.MTU, "mtu", c.MTU, "MTU of pods, bytes; 0 = the one that is found")
	f.IntVar(&c.WireGuardPort, "wireguard-port", c.WireGuardPort, "UDP port of overlay wireguard, of all nodes")
	f.DurationVar(&c.KeyAge, "wireguard-key-age", c.KeyAge, "overlay wireguard: replace this node's key when it is older; 0 = never")
	f.StringVar(&c.Policy, "policy", c.Policy, "what NetworkPolicies do: enforce, or off (nothing: all pods are open to each other)")
	f.StringVar(&c.PodMode, "pod-mode", c.PodMode, "how new pods are connected: bridge, or routed (no bridge, a route for each pod)")
	f.StringVar(&c.PolicyMode, "policy-mode", c.PolicyMode, "what enforces policies: auto, nftables or iptables")
	f.StringVar(&c.PolicyDeny, "policy-deny", c.PolicyDeny, "what becomes of what no policy allows: reject (the sender is told) or drop")
	f.BoolVar(&c.PolicyFirst, "policy-first", c.PolicyFirst, "no pod is made before its policies are in force; else one that is made while no agent runs starts cut off")
	f.BoolVar(&c.PolicyLog, "policy-log", c.PolicyLog, "log what policies deny, at a bounded rate")
	f.StringVar(&c.ServiceMode, "service-mode", c.ServiceMode, "how services are translated: auto, nftables, iptables or none")
	f.StringVar(&c.IPMasq, "ip-masq", c.IPMasq, "give pods the node's address towards the world outside: true, false, or auto (true unless this agent has no part in the pod network: overlay none, and no cni-conf-dir)")
	f.Lookup("ip-masq").NoOptDefVal = "true"
	f.BoolVar(&c.ForwardRules, "iptables-forward-rules", c.ForwardRules, "let pods' packets pass through the node where the policy of iptables' FORWARD is DROP")
	f.StringVar(&c.NonMasquerade, "non-masquerade-cidrs", c.NonMasquerade, "ranges outside of the cluster that see pods' own addresses, separated by commas")
	f.BoolVar(&c.IPMasqSamePorts, "ip-masq-fully-random-disable", c.IPMasqSamePorts, "keep source ports of masqueraded pods where they are free, instead of drawing them")
	f.BoolVar(&c.MasqueradeAll, "masquerade-all", c.MasqueradeAll, "hide the address of pods from services too, where the network cannot carry the replies")
	f.StringVar(&c.ExternalIPs, "external-ips", c.ExternalIPs, "address ranges in which spec.externalIPs of Services count, separated by commas; empty = nowhere, because with them anybody who may write a Service can take over any address")
	f.StringVar(&c.NodePortAddresses, "nodeport-addresses", c.NodePortAddresses, "addresses of the node that serve node ports: ranges separated by commas, or primary for the node's InternalIPs; empty = all")
	f.StringVar(&c.DetectLocal.Mode, "detect-local-mode", c.DetectLocal.Mode, "how pods of this node are told from others: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix (default: ClusterCIDR where cluster-cidr is given, else NodeCIDR)")
	f.StringVar(&c.DetectLocal.ClusterCIDR, "cluster-cidr", c.DetectLocal.ClusterCIDR, "detect-local-mode ClusterCIDR: addresses in these ranges, separated by commas, are those of pods")
	f.StringVar(&c.DetectLocal.Bridge, "pod-bridge-interface", c.DetectLocal.Bridge, "detect-local-mode BridgeInterface: what comes in by this device is from pods")
	f.StringVar(&c.DetectLocal.Prefix, "pod-interface-name-prefix", c.DetectLocal.Prefix, "detect-local-mode InterfaceNamePrefix: what comes in by a device whose name begins so is from pods")
	f.BoolVar(&c.LocalhostPorts, "localhost-nodeports", c.LocalhostPorts, "serve node ports on 127.0.0.1 too, for programs of the node itself (IPv4)")
	f.BoolVar(&c.ServiceCounters, "service-counters", c.ServiceCounters, "count connections, packets and bytes of each service; costs each packet of a service a look-up")
	f.IntVar(&c.Conntrack.MaxPerCore, "conntrack-max-per-core", c.Conntrack.MaxPerCore, "room for so many tracked connections per CPU; a table that is larger stays; 0 = leave it")
	f.IntVar(&c.Conntrack.Min, "conntrack-min", c.Conntrack.Min, "but for no fewer than this")
	f.DurationVar(&c.Conntrack.TCPEstablished, "conntrack-tcp-timeout-established", c.Conntrack.TCPEstablished, "idle time after which an established TCP connection is forgotten; 0 = leave it")
	f.DurationVar(&c.Conntrack.TCPCloseWait, "conntrack-tcp-timeout-close-wait", c.Conntrack.TCPCloseWait, "the same for TCP connections that one side has closed; 0 = leave it")
	f.BoolVar(&c.Conntrack.TCPBeLiberal, "conntrack-tcp-be-liberal", c.Conntrack.TCPBeLiberal, "translate TCP segments outside of the window too, instead of calling them invalid")
	f.DurationVar(&c.Conntrack.UDP, "conntrack-udp-timeout", c.Conntrack.UDP, "idle time after which a UDP flow without an answer is forgotten; 0 = leave it")
	f.DurationVar(&c.Conntrack.UDPStream, "conntrack-udp-timeout-stream", c.Conntrack.UDPStream, "the same for UDP flows with answers; 0 = leave it")
	f.StringVar(&c.HTTP, "http", c.HTTP, "address of /healthz, /readyz, /livez, /metrics, /proxyMode and /configz; empty = off")
	f.StringVar(&c.HealthzBind, "healthz-bind-address", c.HealthzBind, "address of /healthz and /livez as kube-proxy answers them, for load balancers (:10256); empty = off")
}

func newRun() *cobra.Command {
	cfg := agent.DefaultConfig()
	var file, level, format string
	c := &cobra.Command{
		Use:   "run",
		Short: "run the agent on this node until it is told to stop",
		Long: `Runs the agent in the foreground. It programs services, routes to other nodes and the CNI configuration,
and keeps them right. SIGTERM (and a crash) leave the kernel as it is; 'netagent cleanup' removes everything.`,
		Example: `  netagent run --kubeconfig /etc/kubernetes/agent.conf
  netagent run --node n1 --manifests ./cluster --service-mode nftables
  netagent run --config /etc/braid/netagent.yaml`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if file != "" {
				if err := loadConfig(file, c.Flags(), cfg.Validate); err != nil {
					return errUsage{err}
				}
			}
			log, err := newLogger(c.ErrOrStderr(), level, format)
			if err != nil {
				return err
			}
			cfg.Log, cfg.Version, cfg.Settings = log, version(), map[string]string{}
			c.Flags().VisitAll(func(f *pflag.Flag) { cfg.Settings[f.Name] = f.Value.String() })
			if err := cfg.Validate(); err != nil {
				return errUsage{err}
			}
			return agent.Run(c.Context(), cfg)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	runFlags(f, &cfg)
	acceptKubeProxyNames(f)
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&format, "log-format", "text", "text or json")
	f.StringVar(&file, "config", "", "YAML file with the same names as these flags; flags win")
	return c
}
