package link

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// turn is one filter of the packet scheduler: packets to the destinations go on by another device, or stay.
type turn struct {
	protocol uint16
	to       netip.Prefix // invalid = every destination
	dev      int          // index of the other device; 0 = they stay
	in       bool         // as if they had come in by it, instead of going out
}

// Filters are in one of two bands, each of which has a priority for IPv4 and one for IPv6: what is wanted is written into
// the empty one before the other is given up, so each packet goes the old way or the new one.
const bands = 2

// Steer makes packets that leave by dev leave by another device, to the wanted destinations, and says whether it
// had to change anything. The device by may be gone when nothing is wanted. What dev needs for it is made with the first call and
// stays: the kernel loses packets when that comes and goes.
func Steer(h *netlink.Handle, t *Table, dev, by string, want desired.Steering) (changed bool, err error) {
	var list []turn
	other := t.Index(by)
	way, rest := other, 0
	if want.All {
		way, rest = 0, other
	}
	for _, p := range want.Prefixes {
		list = append(list, turn{protocol: protocolOf(p.Addr().Is4()), to: p, dev: way})
	}
	if want.All {
		list = append(list, turn{protocol: unix.ETH_P_IP, dev: rest}, turn{protocol: unix.ETH_P_IPV6, dev: rest})
	}
	if len(list) > 0 && other == 0 {
		return false, fmt.Errorf("send by %s what leaves by %s: there is no such device", by, dev)
	}
	return turnAside(h, t, dev, netlink.HANDLE_MIN_EGRESS, list)
}

// Hand makes packets that come in by dev come in by another device, and says whether it had to change anything.
func Hand(h *netlink.Handle, t *Table, dev, to string) (changed bool, err error) {
	if t.Index(to) == 0 {
		return false, fmt.Errorf("hand to %s what comes in by %s: there is no such device", to, dev)
	}
	return turnAside(h, t, dev, netlink.HANDLE_MIN_INGRESS, []turn{
		{protocol: unix.ETH_P_IP, dev: t.Index(to), in: true}, {protocol: unix.ETH_P_IPV6, dev: t.Index(to), in: true}})
}

func protocolOf(is4 bool) uint16 {
	if is4 {
		return unix.ETH_P_IP
	}
	return unix.ETH_P_IPV6
}

// turnAside makes the filters at one side of a device the wanted ones.
func turnAside(h *netlink.Handle, t *Table, dev string, side uint32, want []turn) (changed bool, err error) {
	l := t.links[dev]
	if l == nil {
		return false, nil
	}
	slices.SortStableFunc(want, func(a, b turn) int { return cmp.Compare(a.protocol, b.protocol) })
	queue := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index,
		Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	there, err := hasQueue(h, l)
	if err != nil {
		return false, err
	}
	if !there {
		if err := h.QdiscAdd(queue); err != nil {
			return false, fmt.Errorf("add queue clsact to %s: %w (does the kernel have sch_ingress?)", dev, err)
		}
	}
	have, err := turns(h, l, side)
	if err != nil {
		return !there, err
	}
	free := 0
	for band, list := range have {
		if len(list) == 0 {
			free = band
		}
	}
	if slices.Equal(have[1-free], want) && len(have[free]) == 0 {
		return !there, nil
	}
	if err := empty(h, l, side, free); err != nil {
		return false, err
	}
	for _, w := range want {
		if err := h.FilterAdd(w.filter(l.Attrs().Index, side, free)); err != nil {
			return false, fmt.Errorf("lead packets of %s to another device: %w (does the kernel have cls_u32 and act_mirred?)", dev, err)
		}
	}
	return true, empty(h, l, side, 1-free)
}

func hasQueue(h *netlink.Handle, l netlink.Link) (bool, error) {
	list, err := Dump(func() ([]netlink.Qdisc, error) { return h.QdiscList(l) })
	if err != nil {
		return false, fmt.Errorf("list the queues of %s: %w", l.Attrs().Name, err)
	}
	return slices.ContainsFunc(list, func(q netlink.Qdisc) bool { return q.Type() == "clsact" }), nil
}

// priority of the filters of a band; lower ones are asked first.
func priority(band int, protocol uint16) uint16 {
	p := uint16(band*bands) + 1
	if protocol == unix.ETH_P_IPV6 {
		p++
	}
	return p
}

// empty empties a band.
func empty(h *netlink.Handle, l netlink.Link, side uint32, band int) error {
	for _, protocol := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
		f := &netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: side, Priority: priority(band, protocol), Protocol: protocol}}
		if err := h.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("remove filters of %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// filter is the kernel's form. Offsets are those of the destination in the IP header (RFC 791, RFC 8200).
func (w turn) filter(index int, side uint32, band int) *netlink.U32 {
	f := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: side, Priority: priority(band, w.protocol), Protocol: w.protocol},
		Sel:         &nl.TcU32Sel{Flags: nl.TC_U32_TERMINAL},
		ClassId:     netlink.MakeHandle(1, 1),
	}
	if w.dev != 0 {
		m := netlink.NewMirredAction(w.dev)
		if w.in {
			m.MirredAction = netlink.TCA_INGRESS_REDIR
		}
		f.Actions = []netlink.Action{m}
	}
	f.Sel.Keys = w.keys()
	f.Sel.Nkeys = uint8(len(f.Sel.Keys))
	return f
}

func (w turn) keys() []nl.TcU32Key {
	if !w.to.IsValid() {
		return []nl.TcU32Key{{}}
	}
	off, bits := int32(24), w.to.Bits()
	if w.to.Addr().Is4() {
		off = 16
	}
	var out []nl.TcU32Key
	for word := w.to.Addr().AsSlice(); len(word) > 0 && bits > 0; word, off, bits = word[4:], off+4, bits-32 {
		out = append(out, nl.TcU32Key{Mask: ^uint32(0) << max(0, 32-bits), Val: binary.BigEndian.Uint32(word), Off: off})
	}
	return out
}

// turns reads the filters at one side of a device. What is not of our making reads as something that is never wanted.
func turns(h *netlink.Handle, l netlink.Link, side uint32) (have [bands][]turn, err error) {
	list, err := Dump(func() ([]netlink.Filter, error) { return h.FilterList(l, side) })
	if err != nil {
		return have, fmt.Errorf("list the filters of %s: %w", l.Attrs().Name, err)
	}
	for _, f := range list {
		a := f.Attrs()
		u, ok := f.(*netlink.U32)
		for band := range have {
			if !ok || u.Sel == nil || priority(band, a.Protocol) != a.Priority {
				continue
			}
			have[band] = append(have[band], readTurn(u))
		}
	}
	for band := range have {
		slices.SortStableFunc(have[band], func(a, b turn) int { return cmp.Compare(a.protocol, b.protocol) })
	}
	return have, nil
}

func readTurn(u *netlink.U32) turn {
	w := turn{protocol: u.Protocol}
	for _, a := range u.Actions {
		if m, ok := a.(*netlink.MirredAction); ok {
			w.dev, w.in = m.Ifindex, m.MirredAction == netlink.TCA_INGRESS_REDIR
		}
	}
	var addr []byte
	bits := 0
	for _, k := range u.Sel.Keys {
		if k.Mask == 0 {
			return w
		}
		addr = binary.BigEndian.AppendUint32(addr, k.Val)
		for m := k.Mask; m != 0; m <<= 1 {
			bits++
		}
	}
	size := 16
	if u.Protocol == unix.ETH_P_IP {
		size = 4
	}
	if len(addr) > size {
		return w
	}
	a, _ := netip.AddrFromSlice(append(addr, make([]byte, size-len(addr))...))
	w.to = netip.PrefixFrom(a, bits)
	return w
}
