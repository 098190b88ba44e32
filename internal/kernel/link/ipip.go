package link

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// outerTTL is the time to live of outer headers. The inner one must not be taken: what a pod sends with a
// small one, as traceroute does, would end between the nodes.
const outerTTL = 64

// createIPIP makes a device of one of the two kinds of IP in IP.
func createIPIP(h *netlink.Handle, t *Table, want desired.Link) ([]string, error) {
	under := t.Index(want.IPIP.Underlay)
	if under == 0 {
		return nil, fmt.Errorf("make %s: there is no device %s to carry it", want, want.IPIP.Underlay)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Flags = want.Name, want.MTU, net.FlagUp
	var l netlink.Link
	module := "ipip"
	switch want.Kind {
	case desired.KindIPIP:
		l = &netlink.Iptun{LinkAttrs: attrs, Link: uint32(under), Local: want.IPIP.Local.AsSlice(), Ttl: outerTTL, PMtuDisc: 1}
	case desired.KindSIT:
		l, module = &netlink.Sittun{LinkAttrs: attrs, Link: uint32(under), Local: want.IPIP.Local.AsSlice(), Ttl: outerTTL, PMtuDisc: 1}, "sit"
	default:
		return nil, fmt.Errorf("make %s: it is of no kind that the kernel serves", want)
	}
	err := h.LinkAdd(l)
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("make %s: another tunnel has the same ends: remove what is left of another pod network (ip -d link show type %s): %w", want, l.Type(), err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("make %s: the kernel has no %s: load the module (modprobe %[2]s) or use --overlay vxlan: %w", want, module, err)
	case err != nil:
		return nil, fmt.Errorf("make %s: %w", want, err)
	}
	return []string{fmt.Sprintf("added %s: %s", want, want.Origin)}, nil
}
