package nftables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// packet is the first of a connection.
type packet struct {
	from     netip.Addr
	fromNode bool // from is an address of this node
	link     string
	to       netip.Addr
	toNode   bool // to is an address of this node
	proto    model.Protocol
	port     uint16
}

// outcome is what becomes of a packet: "refused", "dropped", "untouched", or the backends it may go to
// and whether its source is replaced.
type outcome string

func toBackends(list []service.Backend, masqueraded bool) outcome {
	var words []string
	for _, b := range list {
		words = append(words, b.AddrPort.String())
	}
	slices.Sort(words)
	return outcome(fmt.Sprint(words, " masqueraded: ", masqueraded))
}

func inside(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// want is the contract of service.Frontend and service.Net, word for word.
func (w *world) want(p packet) outcome {
	var f *service.Frontend
	for _, k := range []service.Kind{service.ClusterIP, service.LoadBalancerIP, service.ExternalIP} {
		if g, ok := w.fronts[service.Key{Kind: k, Protocol: p.proto, Addr: p.to, Port: p.port}]; ok && f == nil {
			f = &g
		}
	}
	if f == nil {
		if slices.ContainsFunc(slices.Collect(maps.Keys(w.fronts)), func(k service.Key) bool { return k.Kind == service.ClusterIP && k.Addr == p.to }) {
			return "refused"
		}
		if inside(w.net.Services, p.to) {
			return "dropped"
		}
		any := netip.IPv4Unspecified()
		if p.to.Is6() {
			any = netip.IPv6Unspecified()
		}
		g, ok := w.fronts[service.Key{Kind: service.NodePort, Protocol: p.proto, Addr: any, Port: p.port}]
		if !ok || !p.toNode || p.to.IsLoopback() && !(w.net.Loopback && p.to.Is4()) || !inside(w.net.NodePorts, p.to) {
			return "untouched"
		}
		f = &g
	}
	pod := inside(w.net.PodSources(), p.from) && !p.fromNode || w.net.Local.Matches(p.link)
	switch {
	case f.Filtered && !inside(f.Sources, p.from):
		return "dropped"
	case f.Local() && len(f.Inside) > 0 && (pod || p.fromNode):
		return toBackends(f.Inside, !pod)
	case len(f.Backends) == 0 && f.Empty == service.Drop:
		return "dropped"
	case len(f.Backends) == 0:
		return "refused"
	}
	return toBackends(f.Backends, f.Masquerade == service.MasqueradeAll || f.Masquerade == service.MasqueradeForeign && !pod)
}

// table answers what a packet finds in the sets of one table.
type table struct {
	*desired.NFTContents
	index map[elementID]desired.NFTElement
}

func tableOf(c *desired.NFTContents) table {
	t := table{c, map[elementID]desired.NFTElement{}}
	for _, e := range c.Elements {
		t.index[elementID{e.Set, e.Key}] = e
	}
	return t
}

func (t table) find(set, key string) (e desired.NFTElement, ok bool) {
	e, ok = t.index[elementID{set, key}]
	return e, ok
}

func (t table) in(set string, a netip.Addr) bool {
	return t.contains(set, string(a.AsSlice()))
}

func (t table) contains(set, key string) bool {
	return slices.ContainsFunc(t.Elements, func(e desired.NFTElement) bool {
		return e.Set == set && e.Key <= key && (e.End == "" || key < e.End)
	})
}

// got is what the layout makes of a packet, as the comments of the skeleton say.
func (t table) got(p packet) outcome {
	front := string(entry(service.Key{Kind: service.ClusterIP, Protocol: p.proto, Addr: p.to, Port: p.port}))
	node := string(entry(service.Key{Kind: service.NodePort, Protocol: p.proto, Port: p.port}))
	atNode := p.toNode && t.in(setNodeAddresses, p.to)
	for _, step := range []struct {
		node bool
		key  string
	}{{false, front}, {true, node}} {
		if step.node && !atNode {
			continue
		}
		if e, ok := t.find(setFor(step.node, setFiltered), step.key); ok && !slices.ContainsFunc(t.Rules[e.Goto], func(words string) bool {
			text, welcome := strings.CutPrefix(words, "welcome: ")
			return welcome && netip.MustParsePrefix(text).Contains(p.from)
		}) {
			return "dropped"
		}
		if _, ok := t.find(setFor(step.node, setRejected), step.key); ok {
			return "refused"
		}
		if _, ok := t.find(setFor(step.node, setDropped), step.key); ok {
			return "dropped"
		}
	}
	if e, ok := t.find(setFrontends, front); ok {
		return t.follow(p, e)
	}
	if _, ok := t.find(setClusterIPs, string(p.to.AsSlice())); ok {
		return "refused"
	}
	if t.in(setServiceRanges, p.to) {
		return "dropped"
	}
	if e, ok := t.find(setFor(true, setFrontends), node); ok && atNode {
		return t.follow(p, e)
	}
	return "untouched"
}

func (t table) follow(p packet, e desired.NFTElement) outcome {
	k, _ := parsePick(0, e.Goto)
	pod := t.in(setPodSources, p.from) && !p.fromNode || t.contains(setPodLinks, p.link+string(make([]byte, 16-len(p.link))))
	masqueraded := k.word == wordMasquerade || k.word == wordPick && !pod
	if k.word == wordOutside {
		if pod || p.fromNode {
			e, _ = t.find(setFor(k.node, setInside), e.Key)
			k, _ = parsePick(0, e.Goto)
			masqueraded = !pod
		} else if k.backends == 0 {
			return "dropped"
		}
	}
	var list []service.Backend
	for i := range k.backends {
		slot, _ := t.find(setFor(k.node, setSlots), string(number([]byte(e.Key), k.firstSlot()+uint32(i))))
		list = append(list, service.Backend{AddrPort: parseBackend(slot.Value)})
	}
	return toBackends(list, masqueraded)
}

// packets sends one from every sort of source to every sort of destination.
func (w *world) packets(k kernel) error {
	for _, six := range []bool{false, true} {
		t := tableOf(k[desired.NFTIPv4])
		loopback := netip.MustParseAddr("127.0.0.1")
		if six {
			t, loopback = tableOf(k[desired.NFTIPv6]), netip.IPv6Loopback()
		}
		to := []packet{{to: loopback, toNode: true}, {to: source(six, 0), toNode: true}, {to: source(six, 3), toNode: true}, {to: source(six, 9)}}
		for n := range byte(5) {
			vip := netip.AddrFrom4([4]byte{10, 96, 0, n})
			if six {
				vip = netip.AddrFrom16([16]byte{0xfd, 15: n})
			}
			to = append(to, packet{to: vip})
		}
		for _, p := range to {
			for _, p.proto = range []model.Protocol{model.TCP, model.UDP} {
				for p.port = 80; p.port < 83; p.port++ {
					for n := range byte(4) {
						p.from = source(six, n)
						for _, p.link = range []string{"", "br0", "br01"} { // the node's own come in by none
							p.fromNode = p.link == ""
							if got, want := t.got(p), w.want(p); got != want {
								return fmt.Errorf("packet %+v: %s, want %s", p, got, want)
							}
						}
					}
				}
			}
		}
	}
	return nil
}
