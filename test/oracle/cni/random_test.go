package cni

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// maker makes networks.
type maker struct {
	*rand.Rand
	dir string // of files that configurations name
}

func (m *maker) chance(percent int) bool { return m.IntN(100) < percent }

func pick[T any](m *maker, list ...T) T { return list[m.IntN(len(list))] }

// subnets are what ranges are made of: roomy and narrow ones.
var subnets = map[bool][]string{
	false: {"10.1.0.0/24", "10.2.0.0/29", "172.30.5.64/26", "10.4.0.0/16"},
	true:  {"fd00:1::/64", "fd00:2::/120", "fd00:3::/125", "fd00:4::/48"},
}

// next makes a network.
func (m *maker) next() *network {
	n := &network{Version: pick(m, "0.3.1", "0.4.0", "1.0.0", "1.0.0", "1.1.0", "1.1.0"), Back: m.chance(30)}
	n.Bridge = object{"bridge": pick(m, "cni0", "br-pods"), "ipam": m.ipam(n.Version), "capabilities": object{"ips": true, "mac": true, "ipRanges": true}}
	// What flannel writes, and most of whom the bridge connects to a cluster.
	if m.chance(85) {
		n.Bridge["isDefaultGateway"] = true
	} else if m.chance(70) {
		n.Bridge["isGateway"] = true
	}
	m.options(n)
	m.chain(n)
	for i := range n.Pods {
		n.Pods[i] = m.request(n, i)
	}
	n.Steps = m.steps(n.Version)
	n.Kept = m.chance(25)
	m.rarely(n)
	if _, ok := n.Bridge["args"]; ok { // which are for one pod: two of one bridge cannot have the same
		for i := range n.Steps {
			n.Steps[i].Pod = 0
		}
	}
	if m.chance(15) {
		m.spoil(n)
	}
	return n.clone() // all lists and numbers as JSON has them
}

func (m *maker) options(n *network) {
	for _, o := range []struct {
		percent int
		key     string
		value   any
	}{
		{50, "mtu", pick(m, 1500, 1450, 1400, 9000)}, {40, "hairpinMode", true},
		{20, "dns", object{"nameservers": []string{"10.96.0.10"}, "domain": "cluster.local", "search": []string{"a.example", "b.example"}, "options": []string{"ndots:5"}}},
		{15, "args", m.args(n)}, {20, "ipMasq", true}, {10, "ipMasqBackend", "nftables"}, {10, "forceAddress", true}, {5, "enabledad", true}, {10, "macspoofchk", m.chance(80)},
	} {
		if m.chance(o.percent) {
			n.Bridge[o.key] = o.value
		}
	}
}

// rarely makes what chance would hardly ever.
func (m *maker) rarely(n *network) {
	switch m.IntN(30) {
	case 0: // two host ports, one of them of one address
		n.Chain, n.Kept = []object{{"type": "portmap", "capabilities": object{"portMappings": true}}}, false
		exact, first := m.IntN(2), m.IntN(2)
		for i := range 2 {
			p := object{"hostPort": 8080, "containerPort": podPorts[i], "protocol": "tcp"}
			if i == exact {
				p["hostIP"] = nodeIP
			}
			n.Pods[i] = request{Args: n.Pods[i].Args[:1], Caps: object{"portMappings": []any{p}}}
		}
		n.Steps = []step{{Verb: add, Pod: first}, {Verb: add, Pod: 1 - first}, {Verb: probe}}
	case 1: // two hardware addresses
		n.Chain = []object{{"type": "tuning", "sysctl": object{"net.ipv4.conf.IFNAME.accept_redirects": "1", "net.core.somaxconn": "500"}}}
		n.Pods[0] = request{Args: [][2]string{{"IgnoreUnknown", "1"}, {"MAC", "02:00:00:00:0b:00"}}, Caps: object{"mac": "02:00:00:00:0c:00"}}
		n.Steps = []step{{Verb: add}, {Verb: probe}}
	}
}

// args are wishes that stand in the configuration itself.
func (m *maker) args(n *network) object {
	if m.chance(50) {
		return object{"cni": object{"mac": "02:00:00:00:0a:01"}}
	}
	return object{"cni": object{"ips": []string{m.address(n)}}}
}

// ipam is host-local's part.
func (m *maker) ipam(version string) object {
	families := pick(m, []bool{false}, []bool{false}, []bool{true}, []bool{false, true}, []bool{false, true}, []bool{true, false})
	var sets []any
	for _, six := range families {
		left := append([]string(nil), subnets[six]...)
		m.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
		for range 1 + m.IntN(10)/8 {
			set := []any{}
			for range 1 + m.IntN(10)/8 {
				set = append(set, m.addresses(left[0]))
				left = left[1:]
			}
			sets = append(sets, set)
		}
	}
	ipam := object{"type": "host-local", "ranges": sets}
	if first := sets[0].([]any); len(first) == 1 && m.chance(20) { // the old form
		ipam = first[0].(object)
		ipam["type"], ipam["ranges"] = "host-local", sets[1:]
	}
	var routes []any
	for _, six := range families {
		if m.chance(40) {
			routes = append(routes, m.route(six, version))
		}
	}
	if len(routes) > 0 {
		ipam["routes"] = routes
	}
	if m.chance(10) {
		ipam["resolvConf"] = filepath.Join(m.dir, "resolv.conf")
	}
	return ipam
}

// addresses is one range.
func (m *maker) addresses(subnet string) object {
	r := object{"subnet": subnet}
	base := strings.TrimSuffix(subnet[:strings.Index(subnet, "/")], "0")
	if base == "172.30.5.64" {
		return r
	}
	if m.chance(20) {
		r["rangeStart"] = base + "3"
	}
	if m.chance(20) {
		r["rangeEnd"] = base + "5"
	}
	if m.chance(20) {
		r["gateway"] = base + pick(m, "4", "6")
	}
	return r
}

func (m *maker) route(six bool, version string) object {
	r := object{"dst": pick(m, "0.0.0.0/0", "192.168.9.0/24", "172.16.0.0/12")}
	if six {
		r = object{"dst": pick(m, "::/0", "fd99::/48", "2001:db8:9::/64")}
	}
	if version == "1.1.0" && m.chance(30) {
		r[pick(m, "mtu", "advmss")] = 1300
	}
	if version == "1.1.0" && m.chance(15) {
		r["priority"] = 77
	}
	return r
}

// address is one of some range, or nearly.
func (m *maker) address(n *network) string {
	var all []object
	if _, old := n.ipam()["subnet"]; old {
		all = append(all, n.ipam())
	}
	sets, _ := n.ipam()["ranges"].([]any)
	for _, s := range sets {
		for _, r := range s.([]any) {
			all = append(all, r.(object))
		}
	}
	subnet := pick(m, all...)["subnet"].(string)
	base := strings.TrimSuffix(subnet[:strings.Index(subnet, "/")], "0")
	if base == "172.30.5.64" {
		base = "172.30.5.7"
	}
	return base + pick(m, "2", "3", "4", "5")
}

func (m *maker) chain(n *network) {
	if m.chance(60) {
		p := object{"type": "portmap", "capabilities": object{"portMappings": true}}
		if m.chance(50) {
			p["backend"] = "nftables"
		}
		n.Chain = append(n.Chain, p)
	}
	if m.chance(20) {
		n.Chain = append(n.Chain, object{"type": "bandwidth", "capabilities": object{"bandwidth": true}})
	}
	if m.chance(20) {
		n.Chain = append(n.Chain, object{"type": "tuning", "sysctl": object{"net.ipv4.conf.IFNAME.accept_redirects": "1", "net.core.somaxconn": "500"}})
	}
	if m.chance(10) && n.Version != "0.3.1" { // which it does not know
		n.Chain = append(n.Chain, object{"type": "firewall"})
	}
}

// request is what the runtime says about pod i.
func (m *maker) request(n *network, i int) request {
	r := request{Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", fmt.Sprint("pod", i)}}, Caps: object{}}
	if m.chance(15) {
		r.Args = append(r.Args, [2]string{"IP", m.address(n)})
	}
	if m.chance(15) {
		r.Args = append(r.Args, [2]string{"MAC", fmt.Sprintf("02:00:00:00:0b:%02x", i)})
	}
	if m.chance(15) {
		r.Caps["ips"] = []string{m.address(n) + pick(m, "", "", "/24")}
	}
	if m.chance(15) {
		r.Caps["mac"] = fmt.Sprintf("02:00:00:00:0c:%02x", i)
	}
	if m.chance(10) {
		r.Caps["ipRanges"] = []any{[]any{object{"subnet": "10.77.0.0/24"}}}
	}
	if m.chance(50) {
		r.Caps["bandwidth"] = object{"ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": pick(m, 160_000_000, 40_000_000), "egressBurst": 16_000_000}
	}
	var ports []any
	for range m.IntN(4) {
		p := object{"hostPort": pick(m, 8080, 8081, 8082, 8083) + 10*i, "containerPort": pick(m, 80, 81), "protocol": pick(m, "tcp", "tcp", "udp")}
		if m.chance(10) { // as another pod's may be
			p["hostPort"] = 8080
		}
		if m.chance(40) {
			p["hostIP"] = pick(m, nodeIP, nodeIP6, otherIP, "127.0.0.1", "0.0.0.0", "::")
		}
		ports = append(ports, p)
	}
	if len(ports) > 0 {
		r.Caps["portMappings"] = ports
	}
	return r
}

// steps are the calls that are made.
func (m *maker) steps(version string) (list []step) {
	call := func(verb string, pod int) { list = append(list, step{Verb: verb, Pod: pod}) }
	change := m.IntN(4)
	for i := range 3 + m.IntN(5) {
		if i == change {
			call(handover, 0)
		}
		switch pod := m.IntN(podCount); {
		case i == 0 || m.chance(55):
			call(add, pod)
		case m.chance(25):
			call(check, pod)
		case m.chance(60):
			call(del, pod)
		case m.chance(30):
			call(addElsewhere, pod)
		case m.chance(30):
			call(delNowhere, pod)
		case m.chance(30):
			call(delGone, pod)
		case version == "1.1.0" && m.chance(50):
			list = append(list, step{Verb: gc, Keep: m.Perm(podCount)[:m.IntN(podCount)]})
		case version == "1.1.0":
			call(status, 0)
		}
		if i == 2 {
			call(probe, 0)
		}
	}
	return list
}

// spoil makes one thing wrong.
func (m *maker) spoil(n *network) {
	ranges := func(list ...object) { n.Bridge["ipam"] = object{"type": "host-local", "ranges": []any{list}} }
	ports := func(p object) {
		n.Chain = []object{{"type": "portmap", "capabilities": object{"portMappings": true}}}
		for i := range n.Pods {
			n.Pods[i].Caps["portMappings"] = []any{p}
		}
	}
	all := []struct {
		what string
		do   func()
	}{
		{"a subnet that is none", func() { ranges(object{"subnet": "10.1.0.0"}) }},
		{"a subnet with host bits", func() { ranges(object{"subnet": "10.1.0.1/24"}) }},
		{"a subnet without room", func() { ranges(object{"subnet": "10.1.0.0/31"}) }},
		{"a range outside its subnet", func() { ranges(object{"subnet": "10.1.0.0/24", "rangeStart": "10.9.0.1"}) }},
		{"ranges of both families in one list", func() { ranges(object{"subnet": "10.1.0.0/24"}, object{"subnet": "fd00:1::/64"}) }},
		{"ranges that overlap", func() { ranges(object{"subnet": "10.1.0.0/24"}, object{"subnet": "10.1.0.0/25"}) }},
		{"no ranges", func() { n.Bridge["ipam"] = object{"type": "host-local"} }},
		{"no ipam", func() { n.Bridge["ipam"] = object{"type": "none-such"} }},
		{"a range of two addresses", func() { ranges(object{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.5", "rangeEnd": "10.1.0.6"}) }},
		{"a range of its gateway", func() { ranges(object{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1"}) }},
		{"an address outside all ranges", func() { n.Pods[0].Caps["ips"] = []string{"192.168.200.1"} }},
		{"an address that is none", func() { n.Pods[0].Caps["ips"] = []string{"here"} }},
		{"the gateway's address", func() { ranges(object{"subnet": "10.1.0.0/24"}); n.Pods[0].Caps["ips"] = []string{"10.1.0.1"} }},
		{"a MAC that is none", func() { n.Pods[0].Caps["mac"] = "here" }},
		{"a group's MAC", func() { n.Pods[0].Caps["mac"] = "01:00:5e:00:00:01" }},
		{"host port 0", func() { ports(object{"hostPort": 0, "containerPort": 80, "protocol": "tcp"}) }},
		{"host port 70000", func() { ports(object{"hostPort": 70000, "containerPort": 80, "protocol": "tcp"}) }},
		{"a negative container port", func() { ports(object{"hostPort": 8080, "containerPort": -1, "protocol": "tcp"}) }},
		{"a protocol that is none", func() { ports(object{"hostPort": 8080, "containerPort": 80, "protocol": "ping"}) }},
		{"a hostIP that is none", func() { ports(object{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "here"}) }},
		{"a route that is none", func() { n.ipam()["routes"] = []any{object{"dst": "there"}} }},
		{"an mtu below zero", func() { n.Bridge["mtu"] = -5 }},
		{"an mtu of text", func() { n.Bridge["mtu"] = "big" }},
		{"a bridge with too long a name", func() { n.Bridge["bridge"] = "a-name-too-long-for-links" }},
		{"CNI_ARGS of the field", func() { n.Pods[0].Args = n.Pods[0].Args[1:] }},
		{"CNI_ARGS that nobody knows", func() { n.Pods[0].Args = [][2]string{{"COLOUR", "red"}} }},
		{"hairpin and promiscuous mode", func() { n.Bridge["hairpinMode"], n.Bridge["promiscMode"] = true, true }},
	}
	x := pick(m, all...)
	n.Wrong = x.what
	x.do()
}

// files writes what configurations name.
func (m *maker) files() error {
	return os.WriteFile(filepath.Join(m.dir, "resolv.conf"), []byte("nameserver 192.0.2.53\nsearch c.example\noptions timeout:1\n"), 0o600)
}
