package link

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes of a bridge (linux/if_link.h): its frames are shown to iptables and ip6tables, whatever the switches for all
// bridges say.
const (
	bridgeCallIPTables  = 36 // IFLA_BR_NF_CALL_IPTABLES
	bridgeCallIP6Tables = 37 // IFLA_BR_NF_CALL_IP6TABLES
)

// ErrNoBridgeFilter is that the kernel does not show iptables what a bridge switches.
var ErrNoBridgeFilter = errors.New("the kernel module br_netfilter is not loaded (modprobe br_netfilter)")

// HasBridgeFilter reports whether the kernel can show iptables what a bridge switches.
func HasBridgeFilter() bool {
	_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil
}

// EnsureBridgeFiltered has the kernel show what a bridge switches, between two of its ports too, to iptables. It reports
// whether that had to be set; without the bridge there is nothing to do. The calling thread and h must be in the same namespace.
func EnsureBridgeFiltered(h *netlink.Handle, name string) (changed bool, err error) {
	l, err := h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look up bridge %s: %w", name, err)
	}
	if !HasBridgeFilter() {
		return false, fmt.Errorf("bridge %s: %w", name, ErrNoBridgeFilter)
	}
	filtered, err := bridgeFiltered(l.Attrs().Index)
	if err != nil || filtered {
		return false, err
	}
	r := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.Attrs().Index)
	r.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(bridgeCallIPTables, []byte{1})
	data.AddRtAttr(bridgeCallIP6Tables, []byte{1})
	r.AddData(info)
	if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return false, fmt.Errorf("have bridge %s show its frames to iptables: %w", name, err)
	}
	return true, nil
}

// bridgeFiltered reports whether a bridge has both attributes set.
func bridgeFiltered(index int) (bool, error) {
	r := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	r.AddData(msg)
	messages, err := r.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return false, fmt.Errorf("read the attributes of a bridge: %w", err)
	}
	set := 0
	for _, m := range messages {
		walk(m[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
			if kind != unix.IFLA_LINKINFO {
				return
			}
			walk(v, func(kind uint16, v []byte) {
				if kind != nl.IFLA_INFO_DATA {
					return
				}
				walk(v, func(kind uint16, v []byte) {
					if (kind == bridgeCallIPTables || kind == bridgeCallIP6Tables) && len(v) == 1 && v[0] == 1 {
						set++
					}
				})
			})
		})
	}
	return set == 2, nil
}

// walk calls do for each netlink attribute of a list.
func walk(b []byte, do func(kind uint16, v []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		n := int(nl.NativeEndian().Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		do(nl.NativeEndian().Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}
