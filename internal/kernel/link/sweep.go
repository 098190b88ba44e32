package link

import (
	"fmt"
	"net/netip"
	"regexp"

	"github.com/vishvananda/netlink"
)

// PodBridge is the name of the bridge that pods are plugged into.
const PodBridge = "braid0"

// hostVeth is what HostVethName returns.
var hostVeth = regexp.MustCompile(`^brd[0-9a-f]{11}$`)

// ifb is what IfbName returns.
var ifb = regexp.MustCompile(`^bwp[0-9a-f]{11}$`)

// RemovePodLinks removes the pod bridge, the host ends of pods' interfaces, with which the pods'
// ends go, and the routes of last resort of pod CIDRs. A link of such a name that is no bridge, or no veth, is not ours and stays. It returns
// what was removed, also with an error.
func RemovePodLinks(h *netlink.Handle) (removed []string, err error) {
	links, err := Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		name, kind := l.Attrs().Name, l.Type()
		if (name != PodBridge || kind != "bridge") && (!hostVeth.MatchString(name) || kind != "veth") && (!ifb.MatchString(name) || kind != "ifb") {
			continue
		}
		if err := h.LinkDel(l); err != nil && !IsNotFound(err) {
			return removed, fmt.Errorf("remove %s: %w", name, err)
		}
		removed = append(removed, kind+" "+name)
	}
	n, err := ReadRouted(h)
	if err != nil {
		return removed, err
	}
	routes, err := n.RemoveUnreachable(h, func(netip.Prefix) bool { return false })
	return append(removed, routes...), err
}
