package tour

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// What the stand-in of a container and the outside world say about a connection.
var (
	podLine    = regexp.MustCompile(`(?m)^pod: (\S+)$`)
	clientLine = regexp.MustCompile(`(?m)^client: (\S+)$`)
)

// curl asks one TCP port over HTTP; every TCP port of the playground answers it.
func curl(host string, port uint16) []string {
	return []string{"curl", "-sS", "--max-time", "5", "http://" + net.JoinHostPort(host, strconv.Itoa(int(port))) + "/"}
}

// udp sends one datagram and prints the answer.
func udp(host string, port uint16) []string {
	return []string{"sh", "-c", fmt.Sprintf("echo hello | nc -u -W 1 -w 3 %s %d", host, port)}
}

func ask(p model.Protocol, host string, port uint16) []string {
	if p == model.UDP {
		return udp(host, port)
	}
	return curl(host, port)
}

// answerer reads from an answer which pod gave it and whom it saw as the client.
func answerer(p model.Protocol, a Answer) (pod string, client netip.Addr) {
	if p == model.UDP { // NAME LOCAL CLIENT:PORT DATA
		f := strings.Fields(a.Out)
		if len(f) < 3 {
			return "", netip.Addr{}
		}
		ap, _ := netip.ParseAddrPort(f[2])
		return f[0], ap.Addr().Unmap()
	}
	if m := podLine.FindStringSubmatch(a.Out); m != nil {
		pod = m[1]
	}
	if m := clientLine.FindStringSubmatch(a.Out); m != nil {
		if ap, err := netip.ParseAddrPort(m[1]); err == nil {
			client = ap.Addr().Unmap()
		} else if addr, err := netip.ParseAddr(m[1]); err == nil {
			client = addr.Unmap()
		}
	}
	return pod, client
}

// balanced accepts answers of the given backends only, and asks until each has been seen. source
// checks whom the backend saw.
func balanced(p model.Protocol, eps []endpoint, source func(pod string, client netip.Addr) error) func([]Answer) verdict {
	return func(answers []Answer) verdict {
		var seen []string
		for _, a := range answers {
			pod, client := answerer(p, a)
			if !client.IsValid() {
				return verdict{got: shown(a.Out) + exit(a), want: "an answer of " + backendNames(eps)}
			}
			if pod == "" {
				pod = client.String() // no pod of the cluster: the outside world
			} else if !isBackend(eps, pod) {
				return verdict{got: "answer of " + pod, want: "an answer of " + backendNames(eps)}
			}
			if err := source(pod, client); err != nil {
				return verdict{got: fmt.Sprintf("%s saw client %s", pod, client), want: err.Error()}
			}
			if !slices.Contains(seen, pod) {
				seen = append(seen, pod)
			}
		}
		slices.Sort(seen)
		return verdict{got: fmt.Sprintf("%s (%d asked)", strings.Join(seen, ", "), len(answers)), more: len(seen) < len(eps)}
	}
}

func isBackend(eps []endpoint, pod string) bool {
	return slices.ContainsFunc(eps, func(e endpoint) bool { return e.pod != nil && e.pod.Name == pod })
}

func backendNames(eps []endpoint) string {
	var out []string
	for _, e := range eps {
		if e.pod != nil {
			out = append(out, e.pod.Name)
		} else {
			out = append(out, e.addr.String())
		}
	}
	return strings.Join(out, ", ")
}

// saw prints whom a peer saw as its client or, when it did not say, what came instead.
func saw(peer string, client netip.Addr, a Answer) string {
	if !client.IsValid() {
		return shown(a.Out) + exit(a)
	}
	return fmt.Sprintf("%s saw client %s%s", peer, client, exit(a))
}

func exit(a Answer) string {
	if a.Code == 0 {
		return ""
	}
	return fmt.Sprintf(" (exit code %d)", a.Code)
}

// serviceChecks goes through every port of every cluster IP, from pods on all nodes in turn.
func (w *world) serviceChecks(s *model.Service) (out []check) {
	for _, ip := range s.ClusterIPs {
		for _, p := range s.Ports {
			from := w.clientOf(ip.Is4())
			if from == nil || (p.Protocol != model.TCP && p.Protocol != model.UDP) || p.Port == 53 {
				continue // DNS itself is what every other question went through
			}
			c := check{group: "services", from: from.Key.String(), argv: ask(p.Protocol, w.hostFor(s, ip), p.Port),
				about: fmt.Sprintf("%s through %s", s.Key, ip)}
			eps := w.ready(s, p.Name, p.Protocol, ip.Is4())
			if len(eps) == 0 {
				c.about, c.verify = s.Key.String()+" has no endpoints: refused at once", refused(p.Protocol)
			} else {
				c.tries = 16 * len(eps)
				c.verify = balanced(p.Protocol, eps, func(pod string, client netip.Addr) error {
					if pod != from.Name && isBackend(eps, pod) && client != podIP(from, ip.Is4()) {
						return fmt.Errorf("the pod's own address %s, without NAT", podIP(from, ip.Is4()))
					}
					return nil
				})
			}
			out = append(out, c)
		}
	}
	return out
}

// hostFor is the service's name where that leads to this address only, else the address: a name
// with addresses of both families would leave the choice to the client.
func (w *world) hostFor(s *model.Service, ip netip.Addr) string {
	if len(s.ClusterIPs) == 1 {
		return fqdn(s)
	}
	return ip.String()
}

// refused wants an answer that came at once and said no. A silent drop shows as curl's 28.
func refused(p model.Protocol) func([]Answer) verdict {
	return func(answers []Answer) verdict {
		a := answers[len(answers)-1]
		v := verdict{got: shown(a.Out) + exit(a)}
		if p == model.TCP && a.Code != 7 {
			v.want = "connection refused (exit code 7)"
		}
		if p == model.UDP && (a.Out != "" || a.Code == 0) {
			v.want = "port unreachable (exit code 1, no answer)"
		}
		return v
	}
}

// nodePortChecks asks every node port on every node from outside the cluster.
func (w *world) nodePortChecks(s *model.Service) (out []check) {
	for _, p := range s.Ports {
		if p.NodePort == 0 || (p.Protocol != model.TCP && p.Protocol != model.UDP) {
			continue
		}
		for _, n := range w.nodes {
			for _, ip := range n.InternalIPs {
				if len(familyOf(s.ClusterIPs, ip.Is4())) == 0 {
					continue // the service is not of this family
				}
				out = append(out, w.anySource(check{group: "node ports", from: "outside", argv: ask(p.Protocol, ip.String(), p.NodePort),
					about: fmt.Sprintf("%s through node %s", s.Key, n.Name)}, s, p, ip.Is4()))
			}
		}
	}
	return out
}

// balancerChecks asks every load-balancer address from a pod and, where the world has a route to it,
// from outside. Addresses that the cluster does not serve itself are left out: those of a proxy, and
// those of services with source ranges (see the README's limits).
func (w *world) balancerChecks(s *model.Service) (out []check) {
	for _, in := range s.Ingress {
		if !in.Addr.IsValid() || in.Proxy || len(s.SourceRanges) > 0 {
			continue
		}
		var from []string
		if p := w.clientOf(in.Addr.Is4()); p != nil {
			from = append(from, p.Key.String())
		}
		if slices.ContainsFunc(w.outside.Balancers, func(r netip.Prefix) bool { return r.Contains(in.Addr) }) {
			from = append(from, "outside")
		}
		for _, p := range s.Ports {
			if p.Protocol != model.TCP && p.Protocol != model.UDP {
				continue
			}
			for _, f := range from {
				out = append(out, w.anySource(check{group: "load balancers", from: f, argv: ask(p.Protocol, in.Addr.String(), p.Port),
					about: fmt.Sprintf("%s through %s", s.Key, in.Addr)}, s, p, in.Addr.Is4()))
			}
		}
	}
	return out
}

// anySource completes a check of a service port whose backends may see any client address.
func (w *world) anySource(c check, s *model.Service, p model.ServicePort, is4 bool) check {
	eps := w.ready(s, p.Name, p.Protocol, is4)
	c.tries, c.verify = 16*len(eps), refused(p.Protocol)
	if len(eps) > 0 {
		c.verify = balanced(p.Protocol, eps, func(string, netip.Addr) error { return nil })
	}
	return c
}

// podChecks asks a pod from a pod of the same node and from one of another, in both families: the
// pod must see its peer's own address.
func (w *world) podChecks() (out []check) {
	for _, is4 := range []bool{true, false} {
		for _, same := range []bool{true, false} {
			from, to, port := w.pair(is4, same)
			if from == nil {
				continue
			}
			where := "pods on one node (" + to.Node + ")"
			if !same {
				where = "across nodes (" + from.Node + " to " + to.Node + ")"
			}
			want := podIP(from, is4)
			out = append(out, check{group: "pods", from: from.Key.String(), about: where + ", no NAT",
				argv: curl(podIP(to, is4).String(), port), verify: func(a []Answer) verdict {
					pod, client := answerer(model.TCP, a[0])
					v := verdict{got: saw(pod, client, a[0])}
					if pod != to.Name || client != want {
						v.want = fmt.Sprintf("%s to see %s", to.Name, want)
					}
					return v
				}})
		}
	}
	return out
}

// pair finds two pods on one node, or on two, of which the second serves a TCP port.
func (w *world) pair(is4, same bool) (from, to *model.Pod, port uint16) {
	for _, to := range w.clients {
		for _, p := range to.Ports {
			if p.Protocol != model.TCP || !podIP(to, is4).IsValid() {
				continue
			}
			for _, from := range w.clients {
				if from != to && (from.Node == to.Node) == same && podIP(from, is4).IsValid() {
					return from, to, p.Port
				}
			}
		}
	}
	return nil, nil, 0
}

// hairpinChecks lets the only backend of a service ask that service.
func (w *world) hairpinChecks() (out []check) {
	for _, s := range w.services {
		for _, ip := range s.ClusterIPs {
			for _, p := range s.Ports {
				eps := w.ready(s, p.Name, p.Protocol, ip.Is4())
				if len(eps) == 1 && eps[0].pod != nil && !eps[0].pod.HostNetwork && p.Protocol == model.TCP {
					out = append(out, check{group: "a pod and its own service", from: eps[0].pod.Key.String(),
						argv: curl(ip.String(), p.Port), about: s.Key.String() + " leads back to the pod that asks",
						verify: balanced(p.Protocol, eps, func(string, netip.Addr) error { return nil })})
				}
			}
		}
		if len(out) >= 2 {
			break
		}
	}
	return out
}

// outsideChecks leaves the cluster: the world must see the node's address, not the pod's.
func (w *world) outsideChecks() (out []check) {
	for _, a := range w.outside.Addrs {
		addr := netip.MustParseAddr(a)
		from := w.clientOf(addr.Is4())
		if from == nil {
			continue
		}
		var node netip.Addr
		for _, n := range w.nodes {
			if n.Name == from.Node {
				node, _ = n.Address(addr.Is4())
			}
		}
		out = append(out, check{group: "to the outside", from: from.Key.String(), argv: curl(a, 80),
			about: "masqueraded as node " + from.Node, verify: func(answers []Answer) verdict {
				_, client := answerer(model.TCP, answers[0])
				v := verdict{got: saw("outside", client, answers[0])}
				if client != node {
					v.want = "client " + node.String()
				}
				return v
			}})
	}
	return out
}
