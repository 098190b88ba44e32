package tour

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

const zone = "cluster.local"

// checks lists every question for this cluster, in the order of the tour.
func (w *world) checks() (out []check) {
	for _, s := range w.services {
		out = append(out, w.nameChecks(s)...)
	}
	out = append(out, w.podNameChecks()...)
	out = append(out, w.otherNameChecks()...)
	out = append(out, w.libraryChecks()...)
	for _, s := range w.services {
		out = append(out, w.serviceChecks(s)...)
	}
	for _, s := range w.services {
		out = append(out, w.nodePortChecks(s)...)
	}
	for _, s := range w.services {
		out = append(out, w.balancerChecks(s)...)
	}
	out = append(out, w.podChecks()...)
	out = append(out, w.hairpinChecks()...)
	return append(out, w.outsideChecks()...)
}

func fqdn(s *model.Service) string {
	return fmt.Sprintf("%s.%s.svc.%s", s.Name, s.Namespace, zone)
}

// dig is a check whose answer must be exactly the given lines, in any order.
func (w *world) dig(about string, want []string, args ...string) check {
	slices.Sort(want)
	return check{group: "names", from: w.client().Key.String(), about: about,
		argv: append([]string{"dig", "+short", "+tries=2", "+timeout=2"}, args...),
		verify: func(a []Answer) verdict {
			got := strings.Fields(strings.ReplaceAll(a[len(a)-1].Out, " ", "_"))
			slices.Sort(got)
			wanted := make([]string, len(want))
			for i := range want {
				wanted[i] = strings.ReplaceAll(want[i], " ", "_")
			}
			v := verdict{got: shown(a[len(a)-1].Out)}
			if !slices.Equal(got, wanted) || a[len(a)-1].Code != 0 {
				v.want = shown(strings.Join(want, "\n"))
			}
			return v
		}}
}

// shown puts a multi-line answer on one line.
func shown(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	slices.Sort(lines)
	if s == "" {
		return "no record"
	}
	if len(lines) > 4 {
		return fmt.Sprintf("%s and %d more", strings.Join(lines[:3], ", "), len(lines)-3)
	}
	return strings.Join(lines, ", ")
}

func (w *world) nameChecks(s *model.Service) (out []check) {
	if s.Type == model.ExternalName {
		return w.externalNameChecks(s)
	}
	for _, is4 := range []bool{true, false} {
		addrs, about := familyOf(s.ClusterIPs, is4), "cluster IP of "
		if s.Headless {
			addrs, about = w.anyReady(s, is4), "ready endpoints of headless "
		}
		if len(addrs) == 0 && !is4 {
			continue // most services are IPv4 only: one question about the absent family is in otherNameChecks
		}
		out = append(out, w.dig(about+s.Key.String(), texts(addrs), fqdn(s), qtype(is4)))
		for _, a := range familyOf(s.ClusterIPs, is4) {
			out = append(out, w.dig("reverse of "+s.Key.String(), []string{fqdn(s) + "."}, "-x", a.String()))
		}
	}
	return append(out, w.portNameChecks(s)...)
}

// externalNameChecks asks for the alias and, where it leads to a name whose addresses are known, for
// these too.
func (w *world) externalNameChecks(s *model.Service) []check {
	alias := strings.TrimSuffix(s.ExternalName, ".")
	out := []check{w.dig("ExternalName of "+s.Key.String(), []string{alias + "."}, fqdn(s), "CNAME")}
	for _, a := range w.outside.Addrs {
		if alias == w.outside.Name {
			out = append(out, w.dig(s.Key.String()+" followed to its address", []string{alias + ".", a},
				fqdn(s), qtype(netip.MustParseAddr(a).Is4())))
		}
	}
	return out
}

func (w *world) portNameChecks(s *model.Service) (out []check) {
	for _, p := range s.Ports {
		if p.Name == "" {
			continue
		}
		name := fmt.Sprintf("_%s._%s.%s", p.Name, strings.ToLower(p.Protocol.String()), fqdn(s))
		var want []string
		if s.Headless {
			want = w.headlessSRV(s, p)
		} else {
			n := max(1, len(s.ClusterIPs))
			want = []string{fmt.Sprintf("0 %d %d %s.", 100/n, p.Port, fqdn(s))}
		}
		out = append(out, w.dig("port "+p.Name+" of "+s.Key.String(), want, name, "SRV"))
	}
	for _, e := range w.hostnames(s) {
		out = append(out, w.dig("endpoint of headless "+s.Key.String(), []string{e.addr.String()},
			e.host+"."+fqdn(s), qtype(e.addr.Is4())))
	}
	return out
}

// headlessSRV is one record per endpoint; the weight shares 100 among all of both families.
func (w *world) headlessSRV(s *model.Service, p model.ServicePort) (want []string) {
	var eps []endpoint
	for _, is4 := range []bool{true, false} {
		eps = append(eps, w.ready(s, p.Name, p.Protocol, is4)...)
	}
	seen := map[string]bool{}
	for _, e := range eps {
		host := e.host
		if host == "" {
			host = dashed(e.addr)
		}
		line := fmt.Sprintf("0 %d %d %s.%s.", max(1, 100/len(eps)), e.port, host, fqdn(s))
		if !seen[line] {
			want = append(want, line)
		}
		seen[line] = true
	}
	return want
}

// hostnames lists ready endpoints of a headless service that have a name of their own.
func (w *world) hostnames(s *model.Service) (out []endpoint) {
	if !s.Headless {
		return nil
	}
	for _, is4 := range []bool{true, false} {
		for _, p := range s.Ports[:min(1, len(s.Ports))] {
			for _, e := range w.ready(s, p.Name, p.Protocol, is4) {
				if e.host != "" {
					out = append(out, e)
				}
			}
		}
	}
	return out
}

// podNameChecks asks for one pod's address-shaped name per family.
func (w *world) podNameChecks() (out []check) {
	for _, is4 := range []bool{true, false} {
		if p := w.clientOf(is4); p != nil {
			a := podIP(p, is4)
			out = append(out, w.dig("pod "+p.Key.String(), []string{a.String()},
				fmt.Sprintf("%s.%s.pod.%s", dashed(a), p.Namespace, zone), qtype(is4)))
		}
	}
	return out
}

// libraryChecks ask as a program does, through the C library: the pod's own name, which is in its
// hosts file, and a service's name through the search path.
func (w *world) libraryChecks() []check {
	p := w.client()
	out := []check{getent(p, p.IPs, "the pod's host name leads to itself", "sh", "-c", "getent ahosts $(hostname)")}
	for _, s := range w.services {
		if len(s.ClusterIPs) > 0 {
			return append(out, getent(p, s.ClusterIPs, "cluster IPs of "+s.Key.String(), "getent", "ahosts", s.Name+"."+s.Namespace))
		}
	}
	return out
}

// getent is a check that a look-up leads to exactly these addresses.
func getent(from *model.Pod, addrs []netip.Addr, about string, argv ...string) check {
	want := texts(addrs)
	slices.Sort(want)
	return check{group: "names", from: from.Key.String(), argv: argv, about: about,
		verify: func(a []Answer) verdict {
			var got []string
			for _, line := range strings.Split(a[0].Out, "\n") {
				if addr, _, found := strings.Cut(line, " "); found && !slices.Contains(got, addr) {
					got = append(got, addr)
				}
			}
			slices.Sort(got)
			v := verdict{got: strings.Join(got, ", ") + exit(a[0])}
			if !slices.Equal(got, want) {
				v.want = strings.Join(want, ", ")
			}
			return v
		}}
}

// otherNameChecks asks what is not there, what is outside, and short names through the search path.
func (w *world) otherNameChecks() (out []check) {
	nx := w.dig("no such service", []string{"NXDOMAIN"}, "no-such-service.default.svc."+zone)
	nx.argv = []string{"sh", "-c", "dig no-such-service.default.svc." + zone + " | sed -n 's/.*status: \\([A-Z]*\\).*/\\1/p'"}
	out = append(out, nx)
	for _, a := range w.outside.Addrs {
		addr := netip.MustParseAddr(a)
		out = append(out, w.dig("a name outside the cluster", []string{a}, w.outside.Name, qtype(addr.Is4())))
	}
	for _, c := range w.clients {
		for _, s := range w.services {
			if s.Namespace == c.Namespace && len(s.ClusterIPs) > 0 && s.ClusterIPs[0].Is4() {
				d := w.dig("search path of namespace "+s.Namespace, []string{s.ClusterIPs[0].String()}, "+search", s.Name, "A")
				d.from = c.Key.String()
				return append(out, d)
			}
		}
	}
	return out
}

func familyOf(addrs []netip.Addr, is4 bool) (out []netip.Addr) {
	for _, a := range addrs {
		if a.Is4() == is4 {
			out = append(out, a)
		}
	}
	return out
}

func texts(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

func qtype(is4 bool) string {
	if is4 {
		return "A"
	}
	return "AAAA"
}

// dashed is an address as a DNS label: 10-244-1-5, fd00-10-244-1--5.
func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
}
