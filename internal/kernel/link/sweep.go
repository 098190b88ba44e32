package link

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
)

// PodBridge is the name of the bridge that pods are plugged into.
const PodBridge = "braid0"

// isOfPod tells whether a name can be one that HostVethName (VethPrefix) or IfbName (ifbPrefix) returns.
func isOfPod(name, prefix string) bool {
	hash, ok := strings.CutPrefix(name, prefix)
	return ok && len(hash) == hashDigits && strings.Trim(hash, "0123456789abcdef") == ""
}

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
		if (name != PodBridge || kind != "bridge") && (!isOfPod(name, VethPrefix) || kind != "veth") && (!isOfPod(name, ifbPrefix) || kind != "ifb") {
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
