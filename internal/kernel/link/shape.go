package link

import (
	"errors"
	"fmt"
	"math"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Rate bounds the traffic in one direction; the zero value does not.
type Rate struct {
	Bits  uint64 // per second
	Burst uint64 // bits that may pass at once
}

// Shaping is how much a pod may receive and send.
type Shaping struct {
	Host    string // host end of the pod's interface
	Ifb     string // name for the device that what the pod sends is led through
	MTU     int    // of that device, bytes; 0 leaves it to the kernel
	ToPod   Rate
	FromPod Rate
}

// shapingLatency is how long a packet may wait, in seconds, besides those of a burst.
const shapingLatency = 0.025

const ifbPrefix = "bwp"

// IfbName is the name of the device that what a pod sends is led through, from the same as HostVethName.
func IfbName(containerID, ifname string) string {
	return ifbPrefix + strings.TrimPrefix(HostVethName(containerID, ifname), VethPrefix)
}

// Shape puts token buckets where packets leave the node towards the pod, and, since the kernel only delays
// what leaves by a device, where packets from the pod leave a device that they are led through first.
func Shape(h *netlink.Handle, s Shaping) error {
	host, err := h.LinkByName(s.Host)
	if err != nil {
		return fmt.Errorf("look up host veth %s: %w", s.Host, err)
	}
	if s.ToPod != (Rate{}) {
		if err := addBucket(h, host, s.ToPod); err != nil {
			return err
		}
	}
	if s.FromPod == (Rate{}) {
		return nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Flags = s.Ifb, s.MTU, net.FlagUp
	if err := h.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make device %s for what the pod sends: %w (does the kernel have ifb?)", s.Ifb, err)
	}
	ifb, err := h.LinkByName(s.Ifb)
	if err != nil {
		return fmt.Errorf("look up %s: %w", s.Ifb, err)
	}
	if err := addBucket(h, ifb, s.FromPod); err != nil {
		return err
	}
	return redirect(h, host, ifb)
}

// redirect leads what comes in by a device through another one.
func redirect(h *netlink.Handle, from, through netlink.Link) error {
	in := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if err := h.QdiscAdd(in); err != nil {
		return fmt.Errorf("add ingress queue to %s: %w", from.Attrs().Name, err)
	}
	all := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: in.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		ClassId:     netlink.MakeHandle(1, 1),
		Actions:     []netlink.Action{netlink.NewMirredAction(through.Attrs().Index)},
	}
	if err := h.FilterAdd(all); err != nil {
		return fmt.Errorf("lead what comes in by %s through %s: %w", from.Attrs().Name, through.Attrs().Name, err)
	}
	return nil
}

func addBucket(h *netlink.Handle, l netlink.Link, r Rate) error {
	rate, burst := float64(r.Bits)/8, float64(r.Burst)/8
	limit := min(rate*shapingLatency+burst, math.MaxUint32)
	tbf := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       uint64(rate), Limit: uint32(limit), Buffer: ticks(burst / rate),
	}
	if err := h.QdiscAdd(tbf); err != nil {
		return fmt.Errorf("limit what leaves by %s to %d bit/s: %w", l.Attrs().Name, r.Bits, err)
	}
	return nil
}

// ticks is a time in the unit of the packet scheduler, as much of it as 32 bits hold.
func ticks(seconds float64) uint32 {
	return uint32(min(seconds*netlink.TIME_UNITS_PER_SEC*netlink.TickInUsec(), math.MaxUint32))
}

// DeleteIfb removes the device that Shape made. It is no error when there is none.
func DeleteIfb(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	if l.Type() != "ifb" {
		return fmt.Errorf("interface %s is a %s, not an ifb: not removed", name, l.Type())
	}
	if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// Shaped reads the rates that a device has, in bits per second; 0 when it has none or there is no such device.
func Shaped(h *netlink.Handle, name string) (bits uint64, err error) {
	l, err := h.LinkByName(name)
	if isNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look up %s: %w", name, err)
	}
	list, err := Dump(func() ([]netlink.Qdisc, error) { return h.QdiscList(l) })
	if err != nil {
		return 0, fmt.Errorf("list the queues of %s: %w", name, err)
	}
	for _, q := range list {
		if tbf, ok := q.(*netlink.Tbf); ok {
			return tbf.Rate * 8, nil
		}
	}
	return 0, nil
}
