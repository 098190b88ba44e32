package scenario

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns"
)

// crowdBatch is how many connections one message to the kernel makes.
const crowdBatch = 256

// crowds are what ends the crowds of scripts, by name of the playground.
var crowds sync.Map

// cmdCrowd fills a node's table of connections, and keeps it full until uncrowd. The entries are those of answered
// connections, which the kernel never throws out for new ones.
func cmdCrowd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: crowd NODE")
	}
	lab, at := ts.Getenv("LAB"), look(ts).places[args[0]]
	full, end, ended := make(chan error, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		ns, err := netns.Open(at.netns)
		if err != nil {
			full <- err
			return
		}
		defer ns.Close()
		ended <- ns.Do(func() error { return crowd(full, end) })
	}()
	ts.Check(<-full)
	crowds.Store(lab, func() error {
		close(end)
		return <-ended
	})
	ts.Defer(func() { _ = endCrowd(lab) })
}

// cmdUncrowd takes away what crowd has made, as if all of it had ended.
func cmdUncrowd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: uncrowd")
	}
	ts.Check(endCrowd(ts.Getenv("LAB")))
}

func endCrowd(lab string) error {
	if end, ok := crowds.LoadAndDelete(lab); ok {
		return end.(func() error)()
	}
	return nil
}

// crowd keeps the table of the thread's network namespace full until end, and empties it. It tells full when it is for the
// first time.
func crowd(full chan<- error, end <-chan struct{}) (err error) {
	told := false
	defer func() {
		if !told {
			full <- err
		}
	}()
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer s.Close()
	defer func() {
		if flushed := netlink.ConntrackTableFlush(netlink.ConntrackTable); err == nil {
			err = flushed
		}
	}()
	next := newCrowdMessage()
	for {
		count, err := conntrackNumber("count")
		if err != nil {
			return err
		}
		limit, err := conntrackNumber("max")
		if err != nil {
			return err
		}
		if count >= limit {
			if !told {
				told = true
				full <- nil
			}
			select {
			case <-end:
				return nil
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		// One more than there is room for, whose refusal is no answer anybody reads.
		for n := limit + 1 - count; n > 0; n -= min(n, crowdBatch) {
			if err := unix.Send(s.GetFd(), next.batch(min(n, crowdBatch)), 0); err != nil {
				return fmt.Errorf("make connections: %w", err)
			}
		}
	}
}

func conntrackNumber(name string) (int, error) {
	data, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// crowdMessage makes connections that differ in the address of who began them, from 100.64.0.0 on.
type crowdMessage struct {
	text []byte
	at   []int // where that address is
	next uint32
}

func newCrowdMessage() *crowdMessage {
	src, dst := netip.MustParseAddr("100.64.0.0"), netip.MustParseAddr("192.0.2.1")
	tuple := func(kind int, from, to netip.Addr) *nl.RtAttr {
		t := nl.NewRtAttr(unix.NLA_F_NESTED|kind, nil)
		ip := t.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
		ip.AddRtAttr(nl.CTA_IP_V4_SRC, net.IP(from.AsSlice()))
		ip.AddRtAttr(nl.CTA_IP_V4_DST, net.IP(to.AsSlice()))
		proto := t.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
		proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP})
		proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, []byte{0, 9})
		proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, []byte{0, 9})
		return t
	}
	const answered = 1<<1 | 1<<2 | 1<<3 // IPS_SEEN_REPLY, IPS_ASSURED, IPS_CONFIRMED
	r := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	r.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	r.AddData(tuple(nl.CTA_TUPLE_ORIG, src, dst))
	r.AddData(tuple(nl.CTA_TUPLE_REPLY, dst, src))
	r.AddData(nl.NewRtAttr(nl.CTA_STATUS, binary.BigEndian.AppendUint32(nil, answered)))
	r.AddData(nl.NewRtAttr(nl.CTA_TIMEOUT, binary.BigEndian.AppendUint32(nil, 600)))
	m := &crowdMessage{text: r.Serialize(), next: binary.BigEndian.Uint32(src.AsSlice())}
	for i := range m.text {
		if bytes.HasPrefix(m.text[i:], src.AsSlice()) {
			m.at = append(m.at, i)
		}
	}
	return m
}

// batch are the next n connections.
func (m *crowdMessage) batch(n int) (out []byte) {
	for range n {
		for _, at := range m.at {
			binary.BigEndian.PutUint32(m.text[at:], m.next)
		}
		m.next++
		out = append(out, m.text...)
	}
	return out
}
