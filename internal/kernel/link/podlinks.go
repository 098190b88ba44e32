package link

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// PodLink is the marked host end of a pod's interface.
type PodLink struct {
	Ref
	Mark
	Master  int // index of the bridge it is a port of, 0 = none
	Up      bool
	Hairpin bool // as a port
}

// ReadPodLink returns the host end that a link message tells of, when it is one with a mark. Hairpin is known only
// where the message is of the bridge (AF_BRIDGE), which in turn has no mark.
func ReadPodLink(l netlink.Link) (PodLink, bool) {
	a := l.Attrs()
	if l.Type() != "veth" || !isOfPod(a.Name, VethPrefix) {
		return PodLink{}, false
	}
	m, ok := ParseMark(a.Alias)
	return PodLink{Ref: refOf(l), Mark: m, Master: a.MasterIndex, Up: a.Flags&net.FlagUp != 0}, ok
}

// PodLinks reads the pods' links of one network namespace.
type PodLinks struct {
	h      *netlink.Handle
	socket *nl.SocketHandle // for the question that the handle does not ask
}

// OpenPodLinks works in the namespace of the calling thread. Close it after use.
func OpenPodLinks() (*PodLinks, error) {
	h, err := OpenAt(-1)
	if err != nil {
		return nil, err
	}
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &PodLinks{h: h, socket: &nl.SocketHandle{Socket: s}}, nil
}

// Handle is a netlink socket in the same namespace.
func (p *PodLinks) Handle() *netlink.Handle { return p.h }

// Close gives the sockets up.
func (p *PodLinks) Close() {
	p.h.Close()
	p.socket.Close()
}

// Read lists the pods' links, by name.
func (p *PodLinks) Read() ([]PodLink, error) {
	list, err := Dump(p.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []PodLink
	for _, l := range list {
		if pod, ok := ReadPodLink(l); ok {
			out = append(out, pod)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	hairpin, err := Dump(p.hairpins)
	if err != nil {
		return nil, fmt.Errorf("list bridge ports: %w", err)
	}
	for i := range out {
		out[i].Hairpin = hairpin[out[i].Index]
	}
	slices.SortFunc(out, func(a, b PodLink) int { return a.Index - b.Index })
	return out, nil
}

// hairpins tells which bridge ports are in hairpin mode, by index: all with one question.
func (p *PodLinks) hairpins() (map[int]bool, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: p.socket}
	req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
	messages, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, err
	}
	out := map[int]bool{}
	for _, m := range messages {
		l, err := netlink.LinkDeserialize(&unix.NlMsghdr{Type: unix.RTM_NEWLINK}, m)
		if err != nil {
			return nil, err
		}
		if a := l.Attrs(); a.Protinfo != nil && a.Protinfo.Hairpin {
			out[a.Index] = true
		}
	}
	return out, nil
}

// RepairPort makes a link a hairpin port of the bridge, up, and says what it did. A link that is gone by then is no
// error: the pod goes.
func RepairPort(h *netlink.Handle, bridge Ref, p PodLink) (changes []string, err error) {
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: p.Name, Index: p.Index}}
	step := func(found string, do func() error) {
		if err != nil {
			return
		}
		if err = do(); err == nil {
			changes = append(changes, fmt.Sprintf("repaired %s (%s): %s", p.Name, p.Pod, found))
		}
	}
	joined := p.Master == bridge.Index
	if !joined {
		step("it was no port of "+bridge.Name, func() error { return h.LinkSetMasterByIndex(l, bridge.Index) })
	}
	if !joined || !p.Hairpin {
		step("it was not in hairpin mode", func() error { return h.LinkSetHairpin(l, true) })
	}
	if !p.Up {
		step("it was down", func() error { return h.LinkSetUp(l) })
	}
	if err == nil || errors.Is(err, unix.ENODEV) {
		return changes, nil
	}
	return changes, fmt.Errorf("repair link %s (%s): %w", p.Name, p.Pod, err)
}
