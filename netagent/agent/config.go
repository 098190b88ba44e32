// Package agent wires one node together: a source fills the store, planners turn it into desired
// state, and loops bring the kernel to it. It also answers for itself: status, health, metrics.
package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/braidnet/braid/netagent/overlay/udp"
	"github.com/braidnet/braid/netagent/overlay/wireguard"
	"github.com/braidnet/braid/netagent/service"
)

// Service modes and overlay backends that a Config accepts.
var (
	ServiceModes  = []string{"auto", "nftables", "iptables", "none"}
	Overlays      = []string{"vxlan", "host-gw", "udp", "ipip", "wireguard", "none"}
	Policies      = []string{"off", "enforce"}
	PolicyDenials = []string{"reject", "drop"}
	PodModes      = []string{"bridge", "routed"}
	PolicyModes   = []string{"auto", "nftables", "iptables"}
)

// Config is what `netagent run` is told. Zero values are not defaults: use DefaultConfig.
type Config struct {
	Node       string // this node's name, as in the cluster's Node objects
	Manifests  string // folder or file of manifests; empty = API server
	Kubeconfig string // empty = in-cluster (when Manifests is empty too)
	Context    string // context of Kubeconfig; empty = its current one
	RunDir     string // socket
	StateDir   string // address reservations
	CNIConfDir string // where the conflist goes; empty = none is written
	Overlay    string // one of Overlays
	VNI        int    // VXLAN network identifier, 1 … 2^24-1
	Port       int    // VXLAN UDP port
	GBP        bool   // VXLAN carries the marks of packets
	Direct     bool   // vxlan, ipip: peers on the link are reached by plain routes
	UDPPort    int    // UDP port of overlay udp
	// AllocateNodeCIDRs: the node takes pod CIDRs out of DetectLocal.ClusterCIDR, of NodeMask4 and NodeMask6 bits,
	// where the cluster gives it none.
	AllocateNodeCIDRs    bool
	NodeMask4, NodeMask6 int

	Interface     InterfaceConfig
	PathChecks    bool          // whether what pods send reaches other nodes whole is looked at
	MTU           int           // of pods, bytes; 0 = found
	PodMode       string        // one of PodModes: how new pods are connected to the node
	WireGuardPort int           // UDP port of overlay wireguard
	KeyAge        time.Duration // after which a WireGuard key is replaced; 0 = never
	ServiceMode   string        // one of ServiceModes
	Policy        string        // one of Policies
	PolicyMode    string        // one of PolicyModes: what enforces policies
	PolicyDeny    string        // one of PolicyDenials: what becomes of what no policy allows
	PolicyLog     bool          // what policies deny is told in the log
	PolicyFirst   bool          // no pod is made before the agent has confirmed its policies; else it starts cut off
	// MasqueradeAll, ExternalIPs (CIDRs, comma-separated) and NodePortAddresses (the same, or "primary"; empty = all)
	// are explained at service.Config.
	MasqueradeAll     bool
	IPMasq            string // one of IPMasqs: whether pods get the node's address towards the world outside
	IPMasqSamePorts   bool   // their source ports are kept where they can be
	ForwardRules      bool   // pods' packets pass where the policy of iptables' FORWARD is DROP
	NonMasquerade     string // CIDRs, comma-separated: destinations outside that see pods' own addresses
	ExternalIPs       string
	NodePortAddresses string
	DetectLocal       DetectLocal
	LocalhostPorts    bool   // node ports are served on 127.0.0.1 too
	ServiceCounters   bool   // connections, packets and bytes of each service are counted
	HTTP              string // host:port of health and metrics; empty = off
	HealthzBind       string // host:port of what kube-proxy's health port answers; empty = off
	Conntrack         ConntrackConfig
	Version           string
	Settings          map[string]string // all settings as text, by the names of the flags, to be shown
	Log               *slog.Logger
}

// DefaultConfig returns the settings of an ordinary node. NODE_NAME and BRAID_RUN_DIR of the
// environment change the name and the folder of the socket.
func DefaultConfig() Config {
	host, _ := os.Hostname()
	if env := os.Getenv("NODE_NAME"); env != "" {
		host = env
	}
	run := "/run/braid"
	if env := os.Getenv("BRAID_RUN_DIR"); env != "" {
		run = env
	}
	return Config{
		Node: strings.ToLower(host), RunDir: run, StateDir: "/var/lib/braid", CNIConfDir: "/etc/cni/net.d",
		PodMode: "bridge", ServiceMode: "auto", IPMasq: "auto", ForwardRules: true, Policy: "enforce", PolicyMode: "auto", PolicyDeny: "reject", PolicyLog: true, HTTP: "127.0.0.1:10249",
		Overlay: "vxlan", VNI: 1, Port: 8472, UDPPort: udp.Port, WireGuardPort: wireguard.Port, PathChecks: true, NodeMask4: 24, NodeMask6: 64,
		Conntrack: defaultConntrack, Version: "devel", Log: slog.Default(),
	}
}

// Validate names the first setting that cannot work, with what would.
func (c *Config) Validate() error {
	switch {
	case c.Node == "":
		return fmt.Errorf("node: the name of this node is unknown: give --node, as `kubectl get nodes` prints it")
	case c.Manifests != "" && c.Kubeconfig != "":
		return fmt.Errorf("manifests and kubeconfig: give one of them: the cluster is read from one place only")
	case !slices.Contains(Overlays, c.Overlay):
		return fmt.Errorf("overlay: unknown backend %q: use one of %s", c.Overlay, strings.Join(Overlays, ", "))
	case !slices.Contains(Policies, c.Policy):
		return fmt.Errorf("policy: unknown value %q: use one of %s", c.Policy, strings.Join(Policies, ", "))
	case !slices.Contains(PodModes, c.PodMode):
		return fmt.Errorf("pod-mode: unknown mode %q: use one of %s", c.PodMode, strings.Join(PodModes, ", "))
	case !slices.Contains(PolicyDenials, c.PolicyDeny):
		return fmt.Errorf("policy-deny: unknown value %q: use one of %s", c.PolicyDeny, strings.Join(PolicyDenials, ", "))
	case !slices.Contains(PolicyModes, c.PolicyMode):
		return fmt.Errorf("policy-mode: unknown mode %q: use one of %s", c.PolicyMode, strings.Join(PolicyModes, ", "))
	case !slices.Contains(ServiceModes, c.ServiceMode):
		return fmt.Errorf("service-mode: unknown mode %q: use one of %s", c.ServiceMode, strings.Join(ServiceModes, ", "))
	case c.VNI < 1 || c.VNI >= 1<<24:
		return fmt.Errorf("vni: %d is out of range: use 1 to %d", c.VNI, 1<<24-1)
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("vxlan-port: %d is out of range: use 1 to 65535", c.Port)
	case c.UDPPort < 1 || c.UDPPort > 65535:
		return fmt.Errorf("udp-port: %d is out of range: use 1 to 65535", c.UDPPort)
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535):
		return fmt.Errorf("mtu: %d is out of range: use 576 to 65535 bytes (1280 at least for IPv6), or 0 for the one that is found", c.MTU)
	case c.WireGuardPort < 1 || c.WireGuardPort > 65534:
		return fmt.Errorf("wireguard-port: %d is out of range: use 1 to 65534 (the one after it is used too)", c.WireGuardPort)
	case c.KeyAge != 0 && c.KeyAge < 10*time.Second:
		return fmt.Errorf("wireguard-key-age: %s is too short for other nodes to learn of a new key: use days, such as 720h, or 0 for never", c.KeyAge)
	case c.Direct && c.Overlay != "vxlan" && c.Overlay != "ipip":
		return fmt.Errorf("direct-routing: it belongs to overlays vxlan and ipip, not to %s: leave it out", c.Overlay)
	case c.GBP && c.Overlay != "vxlan":
		return fmt.Errorf("vxlan-gbp: it belongs to overlay vxlan, not to %s: leave it out", c.Overlay)
	case !filepath.IsAbs(c.RunDir) || !filepath.IsAbs(c.StateDir):
		return fmt.Errorf("run-dir and state-dir must be absolute paths, not %q and %q", c.RunDir, c.StateDir)
	}
	if err := c.validateInterface(); err != nil {
		return err
	}
	if err := c.validateLease(); err != nil {
		return err
	}
	if err := c.Conntrack.validate(); err != nil {
		return err
	}
	if _, err := c.egressConfig(); err != nil {
		return err
	}
	_, err := c.services()
	return err
}

// notEnforced says why policies are not enforced.
func (c *Config) notEnforced() string {
	if c.Policy == "off" {
		return "policy: off"
	}
	return "the agent makes no pods' interfaces (cni-conf-dir is empty)"
}

// services returns what the service planner is told.
func (c *Config) services() (service.Config, error) {
	out := service.Config{Node: c.Node, MasqueradeAll: c.MasqueradeAll, Loopback: c.LocalhostPorts}
	var err error
	if out.Local, err = c.DetectLocal.local(); err != nil {
		return out, err
	}
	if out.ExternalIPs, err = prefixes(c.ExternalIPs); err != nil {
		return out, fmt.Errorf("external-ips: %w", err)
	}
	if c.NodePortAddresses == "primary" {
		out.NodePortPrimary = true
		return out, nil
	}
	if out.NodePortAddresses, err = prefixes(c.NodePortAddresses); err != nil {
		return out, fmt.Errorf("nodeport-addresses: %w, or the word primary", err)
	}
	return out, nil
}

// prefixes reads CIDRs and single addresses, separated by commas.
func prefixes(list string) (out []netip.Prefix, err error) {
	for _, text := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return nil, fmt.Errorf("%q is no address range: use CIDRs such as 192.0.2.0/24, separated by commas", text)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// Socket is the path of the agent's unix socket.
func (c *Config) Socket() string { return filepath.Join(c.RunDir, "netagent.sock") }

// source describes where the cluster is read from.
func (c *Config) source() string {
	switch {
	case c.Manifests != "":
		return "manifests " + c.Manifests
	case c.Kubeconfig != "":
		return "API server (" + c.Kubeconfig + ")"
	}
	return "API server (in-cluster)"
}
