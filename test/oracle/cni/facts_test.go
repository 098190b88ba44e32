package cni

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// facts is what was seen after one call: a name for each thing, and how it was. What is not there has no entry.
type facts map[string]string

func (f facts) set(name, format string, args ...any) { f[name] = fmt.Sprintf(format, args...) }

// differ lists the names of what is not the same.
func (f facts) differ(g facts) (names []string) {
	for name := range f {
		if f[name] != g[name] {
			names = append(names, name)
		}
	}
	for name := range g {
		if _, ok := f[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == "error" })
}

// step makes a call and says what came of it.
func (p *plane) step(n *network, s step) facts {
	f := facts{}
	if s.Verb == probe {
		p.traffic(n, f)
		return f
	}
	result, err := p.do(n, s)
	f.set("code", "%d", codeOf(err))
	if err != nil {
		f.set("failed", "yes")
		f.set("error", "%v", err) // in everybody's own words
	}
	if result != nil {
		p.result(f, result, s)
	}
	for name, content := range p.disk() {
		f.set("disk "+name, "%q", content)
	}
	for i, pod := range p.pods {
		p.inside(f, fmt.Sprint("pod", i), pod, n)
	}
	p.inside(f, "elsewhere", p.elsewhere, n)
	p.node(f, n)
	return f
}

// result says what ADD printed. Names and hardware addresses that are made up are left out.
func (p *plane) result(f facts, r *types100.Result, s step) {
	f.set("result version", "%s", r.CNIVersion)
	inNode := map[string]string{}
	p.Run(p.t, func() error {
		list, err := netlink.LinkList()
		for _, l := range list {
			inNode[l.Attrs().Name] = l.Attrs().HardwareAddr.String()
		}
		return err
	})
	for i, x := range r.Interfaces {
		name, mac := x.Name, "true"
		switch {
		case x.Sandbox != "" && x.Sandbox != p.pods[s.Pod].Path():
			name += " in another namespace"
		case x.Sandbox != "":
			name += " in the pod"
			mac = x.Mac
			if !strings.HasPrefix(mac, "02:00:00:00:") { // not asked for
				mac = fmt.Sprint(mac == p.macOf(s.Pod))
			}
		case strings.HasPrefix(name, "veth") || strings.HasPrefix(name, "brd"):
			name, mac = "host end", fmt.Sprint(inNode[name] == x.Mac)
		default:
			mac = fmt.Sprint(inNode[name] == x.Mac)
		}
		f.set(fmt.Sprintf("result interface %d", i), "%s mac %s", name, mac)
		if x.Mtu != 0 {
			f.set(fmt.Sprintf("result interface %d mtu", i), "%d", x.Mtu)
		}
	}
	for i, ip := range r.IPs {
		f.set(fmt.Sprintf("result ip %d", i), "%s via %s on %d", ip.Address.String(), ip.Gateway, *ip.Interface)
	}
	for _, route := range r.Routes {
		f.set("result route "+route.Dst.String(), "via %s%s", route.GW, also(route.MTU, route.AdvMSS, route.Priority))
		if route.Scope != nil {
			f.set("result route "+route.Dst.String(), "scope %d", *route.Scope)
		}
	}
	if !r.DNS.IsEmpty() {
		f.set("result dns", "%v", r.DNS)
	}
}

func also(mtu, advmss, priority int) (out string) {
	for _, x := range []struct {
		name  string
		value int
	}{{"mtu", mtu}, {"advmss", advmss}, {"metric", priority}} {
		if x.value != 0 {
			out += fmt.Sprint(" ", x.name, " ", x.value)
		}
	}
	return out
}

func (p *plane) macOf(pod int) (mac string) {
	p.pods[pod].Run(p.t, func() error {
		l, err := netlink.LinkByName(ifname)
		if err == nil {
			mac = l.Attrs().HardwareAddr.String()
		}
		return nil
	})
	return mac
}

// inside says what is in a pod.
func (p *plane) inside(f facts, name string, pod *nstest.NS, n *network) {
	pod.Run(p.t, func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return nil // it has none: nothing is said of it
		}
		a := l.Attrs()
		f.set(name, "has an interface")
		f.set(name+" mtu", "%d", a.MTU)
		f.set(name+" up", "%v", a.OperState == netlink.OperUp)
		f.set(name+" promiscuous", "%v", a.Promisc != 0)
		if strings.HasPrefix(a.HardwareAddr.String(), "02:00:00:00:") {
			f.set(name+" mac", "%s", a.HardwareAddr)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		four, six := false, false
		for _, a := range addrs {
			four = four || a.IP.To4() != nil
			six = six || a.IP.To4() == nil && !a.IP.IsLinkLocalUnicast()
			if !a.IP.IsLinkLocalUnicast() {
				ones, _ := a.Mask.Size()
				f.set(name+" address "+a.IP.String(), "/%d tentative %v", ones, a.Flags&unix.IFA_F_TENTATIVE != 0)
			}
		}
		if err := insideRoutes(f, name, l); err != nil {
			return err
		}
		return insideSysctls(f, name, four, six, n.has("tuning"))
	})
}

func insideRoutes(f facts, name string, l netlink.Link) error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: l.Attrs().Index, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast() {
			if r.Dst != nil {
				continue
			}
			r.Dst = &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
			if r.Family == netlink.FAMILY_V6 {
				r.Dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
			}
		}
		via := "on the link"
		if r.Gw != nil {
			via = "via " + r.Gw.String()
		}
		metric := r.Priority
		if r.Family == netlink.FAMILY_V6 && (metric == 1024 || metric == 256) {
			metric = 0 // the kernel's own
		}
		f.set(name+" route "+r.Dst.String(), "%s%s", via, also(r.MTU, r.AdvMSS, metric))
	}
	return nil
}

func insideSysctls(f facts, name string, four, six, tuned bool) error {
	var names []string
	if four {
		names = append(names, "net/ipv4/conf/eth0/arp_notify")
	}
	if six {
		names = append(names, "net/ipv6/conf/eth0/disable_ipv6", "net/ipv6/conf/lo/disable_ipv6", "net/ipv6/conf/eth0/accept_dad", "net/ipv6/conf/eth0/ndisc_notify", "net/ipv6/conf/eth0/keep_addr_on_down", "net/ipv6/conf/eth0/accept_ra")
	}
	if tuned {
		names = append(names, "net/ipv4/conf/eth0/accept_redirects", "net/core/somaxconn")
	}
	for _, key := range names {
		b, err := os.ReadFile(filepath.Join("/proc/sys", key))
		if err != nil {
			return err
		}
		f.set(name+" sysctl "+key, "%s", strings.TrimSpace(string(b)))
	}
	return nil
}

// node says what is on the node: the bridge, and its ports in the order of their settings.
func (p *plane) node(f facts, n *network) {
	p.Run(p.t, func() error {
		list, err := netlink.LinkList()
		if err != nil {
			return err
		}
		bridge := -1
		for _, l := range list {
			if a := l.Attrs(); l.Type() == "bridge" && a.Name == n.Bridge["bridge"] {
				bridge = a.Index
				f.set("bridge", "up %v mtu %d promiscuous %v", a.Flags&net.FlagUp != 0, a.MTU, a.Promisc != 0)
				addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
				if err != nil {
					return err
				}
				for _, a := range addrs {
					if !a.IP.IsLinkLocalUnicast() {
						f.set("bridge address "+a.IPNet.String(), "there")
					}
				}
			}
		}
		for _, key := range forwarding {
			b, err := os.ReadFile(filepath.Join("/proc/sys", key))
			if err != nil {
				return err
			}
			f.set("node sysctl "+key, "%s", strings.TrimSpace(string(b)))
		}
		var ports []string
		for _, l := range list {
			a := l.Attrs()
			if a.Name == "lo" || a.Name == "eth0" || a.Index == bridge {
				continue
			}
			text := fmt.Sprint(l.Type(), " mtu ", a.MTU)
			if a.MasterIndex == bridge {
				info, err := netlink.LinkGetProtinfo(l)
				if err != nil {
					continue
				}
				text += fmt.Sprint(" port, up ", a.OperState == netlink.OperUp, " hairpin ", info.Hairpin, " isolated ", info.Isolated)
			}
			if rate := rateOf(l); rate != "" {
				text += " " + rate
			}
			ports = append(ports, text)
		}
		slices.Sort(ports)
		for i, text := range ports {
			f.set(fmt.Sprintf("node link %d", i), "%s", text)
		}
		return nil
	})
}

// rateOf is what may leave by a link, in bytes a second: of a token bucket, or of the class of the tree that
// has a limit.
func rateOf(l netlink.Link) string {
	list, err := netlink.QdiscList(l)
	if err != nil {
		return ""
	}
	var out []string
	for _, q := range list {
		switch x := q.(type) {
		case *netlink.Tbf:
			out = append(out, fmt.Sprint("rate ", x.Rate))
		case *netlink.Htb:
			classes, _ := netlink.ClassList(l, 0)
			rates := map[uint64]bool{}
			for _, c := range classes {
				if h, ok := c.(*netlink.HtbClass); ok {
					rates[h.Rate] = true
				}
			}
			for _, r := range slices.Sorted(maps.Keys(rates)) {
				if r != 0 {
					out = append(out, fmt.Sprint("rate ", r))
				}
			}
		}
	}
	return strings.Join(out, ", ")
}
