package hostport

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forget makes the kernel look again where packets go that it decided on before host ports changed: those
// that lead to the pods of ended, and those that reach the node itself by a port of begun. A TCP client
// begins anew by itself; a UDP client that keeps its port would wait for ever. Where that fails the flows
// last until the kernel forgets them (its timeout for UDP), which is no reason to refuse a pod.
func (s *Store) forget(ended, begun []rule) {
	other := func(r rule) bool { return r.host.Protocol == TCP }
	ended, begun = slices.DeleteFunc(slices.Clone(ended), other), slices.DeleteFunc(slices.Clone(begun), other)
	for f := range families {
		stale := staleFlows{ended: of(f, ended), begun: of(f, begun)}
		if len(stale.ended)+len(stale.begun) == 0 {
			continue
		}
		if err := stale.remove(f); err != nil {
			s.Log.Warn("clients of a host port that keep their source port may wait for the kernel to forget them", "family", f, "err", err)
		}
	}
}

func (stale staleFlows) remove(f desired.NFTFamily) error {
	family := unix.AF_INET
	if f == desired.NFTIPv6 {
		family = unix.AF_INET6
	}
	addrs, err := link.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
	if err != nil {
		return fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range addrs {
		stale.local = append(stale.local, link.Netip(a.IPNet).Addr())
	}
	_, err = link.Dump(func() (uint, error) {
		return netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family), stale)
	})
	if err != nil {
		return fmt.Errorf("delete connection tracking entries: %w", err)
	}
	return nil
}

// staleFlows is a filter of connection tracking entries.
type staleFlows struct {
	ended, begun []rule
	local        []netip.Addr // of the node
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	to, from = to.Unmap(), from.Unmap()
	meant := func(r rule) bool {
		return uint8(r.host.Protocol) == flow.Forward.Protocol && r.host.Number == flow.Forward.DstPort &&
			(r.host.Addr == to || !r.host.Addr.IsValid())
	}
	return slices.ContainsFunc(s.ended, func(r rule) bool {
		return meant(r) && r.pod == netip.AddrPortFrom(from, flow.Reverse.SrcPort)
	}) || from == to && (to.IsLoopback() || slices.Contains(s.local, to)) && slices.ContainsFunc(s.begun, meant)
}
