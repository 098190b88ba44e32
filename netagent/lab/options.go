package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Families, backends and service modes that `up` accepts.
var (
	families     = []string{"dual", "v4", "v6"}
	backends     = []string{"vxlan", "host-gw", "udp", "ipip", "wireguard", "none"}
	serviceModes = []string{"auto", "nftables", "iptables"}
)

const maxNodes = 32

// Options describe one lab; `up` writes them to lab.json and every other verb reads them there.
type Options struct {
	Name        string        `json:"name"`
	Nodes       int           `json:"nodes"`
	Family      string        `json:"family"`
	Backend     string        `json:"backend"`
	ServiceMode string        `json:"serviceMode"`
	Links       int           `json:"links"` // networks between the nodes, with a router between these
	Timeout     time.Duration `json:"timeout"`
	BinDir      string        `json:"binDir"`    // holds netagent, coredns, braid
	Corefile    string        `json:"corefile"`  // configuration of the nodes' CoreDNS
	Manifests   []string      `json:"manifests"` // as the user named them
	// AgentSettings are lines of YAML, such as "masquerade-all: true", for the agents of all nodes.
	AgentSettings []string  `json:"agentSettings,omitempty"`
	Created       time.Time `json:"created"`
}

func (o *Options) validate() error {
	if err := checkName(o.Name); err != nil {
		return err
	}
	oneOf := func(flag, value string, accepted []string) error {
		if slices.Contains(accepted, value) {
			return nil
		}
		return fmt.Errorf("--%s %q: use one of %s", flag, value, strings.Join(accepted, ", "))
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		return fmt.Errorf("--nodes %d: use 1 to %d", o.Nodes, maxNodes)
	}
	if err := oneOf("family", o.Family, families); err != nil {
		return err
	}
	if err := oneOf("backend", o.Backend, backends); err != nil {
		return err
	}
	if err := oneOf("service-mode", o.ServiceMode, serviceModes); err != nil {
		return err
	}
	for _, s := range o.AgentSettings {
		if name, _, ok := strings.Cut(s, ":"); !ok || strings.TrimSpace(name) == "" {
			return fmt.Errorf("--agent-setting %q: write it as in a file of settings, such as 'masquerade-all: true'", s)
		}
	}
	if o.Links < 1 || o.Links > o.Nodes {
		return fmt.Errorf("--links %d: use 1 to the number of nodes", o.Links)
	}
	if o.Timeout <= 0 {
		return fmt.Errorf("--timeout %s: must be longer than zero", o.Timeout)
	}
	return nil
}

func (o *Options) paths() paths { return paths{o.Name} }

func (o *Options) bin(program string) string { return filepath.Join(o.BinDir, program) }

// agentConfig is the file of settings that the agents of all nodes start with.
func (o *Options) agentConfig() []byte {
	lines := []string{"# An agent takes these when it starts: netagent lab kill node/n1/netagent --name " + o.Name,
		"overlay: " + o.Backend, "service-mode: " + o.ServiceMode}
	return []byte(strings.Join(append(lines, o.AgentSettings...), "\n") + "\n")
}

func (o *Options) save() error {
	data, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(o.paths().options(), data)
}

// writeFile replaces a file in one step, so that a reader never sees half of it.
func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func loadOptions(name string) (*Options, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(paths{name}.options())
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("lab %s is not up: start it with `netagent lab up --name %s FILE…`", name, name)
	}
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	var o Options
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, fmt.Errorf("lab %s: %s: %w", name, paths{name}.options(), err)
	}
	return &o, nil
}

// family holds the addresses a lab uses in one address family. All address arithmetic of the lab
// is here.
type family struct {
	ip          string     // IPv4 or IPv6, as EndpointSlices and Services spell it
	underlays   string     // fmt of a network between nodes, given the link's number + 77
	outside     netip.Addr // a host of the outside world
	dns         netip.Addr // ClusterIP of kube-dns
	serviceCIDR netip.Prefix
	balancers   netip.Prefix // load-balancer addresses: the outside world sends them to the nodes
	pods        string       // fmt of a node's pod CIDR, given the node's number
}

// underlay is the network between the nodes of one link, counted from 0.
func (f family) underlay(link int) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf(f.underlays, 77+link))
}

// gateway is the underlay's own address, its first: the nodes' default gateway.
func (f family) gateway(link int) netip.Addr { return f.underlay(link).Addr().Next() }

// host is an address of a link, by the number that ends it, which is at most 99 and shown in decimal.
func (f family) host(link, number int) netip.Addr {
	a := f.underlay(link).Addr()
	if a.Is4() {
		raw := a.As4()
		raw[3] = byte(number)
		return netip.AddrFrom4(raw)
	}
	raw := a.As16()
	raw[15] = byte(number/10<<4 | number%10)
	return netip.AddrFrom16(raw)
}

var (
	ipv4 = family{
		ip: "IPv4", underlays: "192.168.%d.0/24",
		outside: netip.MustParseAddr("203.0.113.10"), dns: netip.MustParseAddr("10.96.0.10"),
		serviceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
		balancers:   netip.MustParsePrefix("198.51.100.0/24"), pods: "10.244.%d.0/24",
	}
	ipv6 = family{
		ip: "IPv6", underlays: "fd%d::/64",
		outside: netip.MustParseAddr("2001:db8:99::10"), dns: netip.MustParseAddr("fd00:10:96::a"),
		serviceCIDR: netip.MustParsePrefix("fd00:10:96::/112"),
		balancers:   netip.MustParsePrefix("2001:db8:51::/112"), pods: "fd00:10:244:%d::/64",
	}
)

// families returns the address families of the lab, the primary one first.
func (o *Options) families() []family {
	switch o.Family {
	case "v4":
		return []family{ipv4}
	case "v6":
		return []family{ipv6}
	}
	return []family{ipv4, ipv6}
}

// node is one machine of the lab.
type node struct {
	name string
	link int            // which of the underlay's links it hangs on
	ips  []netip.Addr   // one per family
	pods []netip.Prefix // one per family
}

func (o *Options) nodes() []node {
	out := make([]node, o.Nodes)
	for i := range out {
		n := i + 1
		out[i].name, out[i].link = fmt.Sprintf("n%d", n), i*o.Links/o.Nodes
		for _, f := range o.families() {
			out[i].ips = append(out[i].ips, f.host(out[i].link, 10+n))
			out[i].pods = append(out[i].pods, netip.MustParsePrefix(fmt.Sprintf(f.pods, n)))
		}
	}
	return out
}

// object is the node as Kubernetes would describe it.
func (n *node) object(created time.Time) *corev1.Node {
	o := &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: n.name, CreationTimestamp: metav1.NewTime(created), Labels: map[string]string{
			corev1.LabelHostname: n.name, corev1.LabelOSStable: "linux",
		}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}
	for i, ip := range n.ips {
		o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, n.pods[i].String())
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	o.Spec.PodCIDR = o.Spec.PodCIDRs[0]
	o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.name})
	return o
}
