package nftables

import (
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/service"
)

// Elements are a frontend's elements: where it is found, its backends in the order of f.Backends and
// f.Inside, what its affinity and sources need, and those it may share with others (see shared).
func Elements(f *service.Frontend) []desired.NFTElement {
	if !known(f.Protocol) {
		return nil
	}
	e := elements{f: f, node: f.Kind == service.NodePort, key: entry(f.Key)}
	e.list = make([]desired.NFTElement, 0, 2+len(f.Backends))
	named := f.Name() + " " + f.Kind.String()
	if c, filtered := filteredBy(f); filtered {
		e.add(setFiltered, desired.NFTElement{Goto: c.Name, Comment: named})
	}
	if f.Kind == service.ClusterIP {
		e.list = append(e.list, desired.NFTElement{Set: setClusterIPs, Key: string(f.Addr.AsSlice())})
	}
	p, inside := Picks(f)
	if p == nil {
		set := setRejected
		if f.Empty == service.Drop {
			set = setDropped
		}
		e.add(set, desired.NFTElement{Comment: named})
		return e.list
	}
	e.add(setFrontends, desired.NFTElement{Goto: p.chain(), Comment: named})
	e.backends(0, setUsable, f.Backends)
	if inside != nil {
		e.add(setInside, desired.NFTElement{Goto: inside.chain(), Comment: named})
		e.backends(insideSlots, setUsableInside, f.Inside)
	}
	if f.Affinity > 0 {
		e.add(setSessions, desired.NFTElement{Value: string(number(number(nil, 0), session(f))), Comment: f.SessionName()})
	}
	return e.list
}

// maxComment is what nftables takes, bytes. A comment cut there is found again as it was written.
const maxComment = 127

// elements collects those of one frontend.
type elements struct {
	f    *service.Frontend
	node bool
	key  []byte // address, protocol, port
	list []desired.NFTElement
}

// add adds an element whose key begins with the frontend's; more follows it.
func (e *elements) add(set string, el desired.NFTElement, more ...byte) {
	el.Set, el.Key = setFor(e.node, set), string(e.key)+string(more)
	el.Comment = el.Comment[:min(len(el.Comment), maxComment)]
	e.list = append(e.list, el)
}

// backends adds what one list of backends needs; its slots count from first on.
func (e *elements) backends(first uint32, usable string, list []service.Backend) {
	name := e.f.Name()
	list = list[:min(len(list), maxBackends)]
	for i, b := range list {
		e.add(setSlots, desired.NFTElement{Value: backend(b.AddrPort), Comment: name}, number(nil, first+uint32(i))...)
	}
	if e.f.Affinity > 0 {
		for _, b := range list {
			e.add(usable, desired.NFTElement{Comment: name}, []byte(backend(b.AddrPort))...)
		}
	}
	for _, b := range list {
		if b.Local {
			a := string(b.Addr().AsSlice())
			e.list = append(e.list, desired.NFTElement{Set: setHairpins, Key: a + a})
		}
	}
}

// shared reports whether elements of the set may belong to several frontends. All others are one frontend's own.
func shared(set string) bool { return set == setHairpins || set == setClusterIPs }

// NetElements are the elements that the addresses of pods, services and the node need in one family.
func NetElements(f desired.NFTFamily, net service.Net) []desired.NFTElement {
	// Local pods are pods of the cluster, whatever else the list of all nodes lacks for the moment.
	all := slices.Concat(net.ClusterPods, net.LocalPods)
	return slices.Concat(desired.NFTRanges(f, setLocalPods, net.LocalPods), desired.NFTRanges(f, setPodSources, net.PodSources()), podLinks(net.Local),
		desired.NFTRanges(f, setClusterPods, all), desired.NFTRanges(f, setServiceRanges, net.Services), nodeAddresses(f, net))
}

// podLinks are the names of the devices by which pods of this node come in, as one range: a name is padded with zeros,
// and what begins with it lies before the next string of its length.
func podLinks(l service.Local) []desired.NFTElement {
	if l.Link == "" || len(l.Link) >= desired.NFTIfName.Bytes {
		return nil
	}
	first := make([]byte, desired.NFTIfName.Bytes)
	copy(first, l.Link)
	end, last := slices.Clone(first), desired.NFTIfName.Bytes-1
	if l.Prefix {
		last = len(l.Link) - 1
	}
	end[last]++
	return []desired.NFTElement{{Set: setPodLinks, Key: string(first), End: string(end)}}
}

// arrange gives the backends of next an order in which most keep the slot they have in old: who
// stays where it is needs no change in the kernel, so that one endpoint more or less is one or two
// elements even for a service with thousands. Any order balances equally well.
func arrange(old []netip.AddrPort, next []service.Backend) []service.Backend {
	at := make(map[netip.AddrPort]int, len(old))
	for i, b := range old {
		at[b] = i
	}
	out := make([]service.Backend, len(next))
	placed := make([]bool, len(next))
	var homeless []service.Backend
	for _, b := range next {
		if i, ok := at[b.AddrPort]; ok && i < len(out) && !placed[i] {
			out[i], placed[i] = b, true
		} else {
			homeless = append(homeless, b)
		}
	}
	for i := range out {
		if !placed[i] {
			out[i], homeless = homeless[0], homeless[1:]
		}
	}
	return out
}

func addrPorts(backends []service.Backend) []netip.AddrPort {
	out := make([]netip.AddrPort, len(backends))
	for i, b := range backends {
		out[i] = b.AddrPort
	}
	return out
}
