package ipset

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink/nl"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

func open(t testing.TB) (*nstest.NS, *Conn) {
	ns := nstest.New(t)
	var c *Conn
	ns.Run(t, func() (err error) { c, err = Open(); return err })
	t.Cleanup(c.Close)
	return ns, c
}

func prefix(text string) netip.Prefix {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p
	}
	a := netip.MustParseAddr(text)
	return netip.PrefixFrom(a, a.BitLen())
}

func members(list ...string) (out []desired.IPSetMember) {
	for _, text := range list {
		var m desired.IPSetMember
		addr, port, found := strings.Cut(text, ",")
		if m.Prefix = prefix(addr); found {
			if _, err := fmt.Sscanf(port, "%d:%d", &m.Protocol, &m.Port); err != nil {
				panic(err)
			}
		}
		out = append(out, m)
	}
	return out
}

func texts(list []desired.IPSetMember) (out []string) {
	for _, m := range list {
		out = append(out, m.String())
	}
	slices.Sort(out)
	return out
}

// TestLifeOfSets makes a set of each type, changes it, reads it back, and compares with what the tool prints.
func TestLifeOfSets(t *testing.T) {
	ns, c := open(t)
	cases := []struct {
		set    desired.IPSet
		add    []string
		remove []string
		want   []string
		tool   string // a line of `ipset save`
	}{
		{desired.IPSet{Name: "braid-a4", Type: desired.IPSetAddr}, []string{"10.0.0.1", "10.0.0.2", "255.255.255.255"}, []string{"10.0.0.2"}, []string{"10.0.0.1", "255.255.255.255"}, "add braid-a4 10.0.0.1"},
		{desired.IPSet{Name: "braid-a6", Type: desired.IPSetAddr, IPv6: true}, []string{"fd00::1", "fd00::2"}, []string{"fd00::2"}, []string{"fd00::1"}, "add braid-a6 fd00::1"},
		{desired.IPSet{Name: "braid-n4", Type: desired.IPSetNet}, []string{"0.0.0.0/1", "10.0.0.0/24", "10.0.0.7"}, []string{"10.0.0.0/24"}, []string{"0.0.0.0/1", "10.0.0.7"}, "add braid-n4 0.0.0.0/1"},
		{desired.IPSet{Name: "braid-n6", Type: desired.IPSetNet, IPv6: true}, []string{"::/1", "8000::/1", "fd00::7"}, nil, []string{"8000::/1", "::/1", "fd00::7"}, "add braid-n6 8000::/1"},
		{desired.IPSet{Name: "braid-p4", Type: desired.IPSetAddrPort}, []string{"10.0.0.1,6:80", "10.0.0.1,132:80", "10.0.0.1,17:0"}, []string{"10.0.0.1,6:80"}, []string{"10.0.0.1,132:80", "10.0.0.1,17:0"}, "add braid-p4 10.0.0.1,sctp:80"},
		{desired.IPSet{Name: "braid-p6", Type: desired.IPSetAddrPort, IPv6: true}, []string{"fd00::1,6:80", "fd00::1,6:65535"}, nil, []string{"fd00::1,6:65535", "fd00::1,6:80"}, "add braid-p6 fd00::1,tcp:65535"},
	}
	for _, x := range cases {
		if err := c.Check(x.set); err != nil {
			t.Fatal(err)
		}
		ops := []desired.IPSetOp{{Verb: desired.IPSetCreate, Set: x.set}, {Verb: desired.IPSetAdd, Set: x.set, Members: members(x.add...)}, {Verb: desired.IPSetRemove, Set: x.set, Members: members(x.remove...)}}
		for range 2 { // all of these may be repeated
			if err := c.Apply(ops); err != nil {
				t.Fatal(err)
			}
		}
		have, err := c.Read(x.set)
		if err != nil || !slices.Equal(texts(have), x.want) {
			t.Errorf("%s: read %v (%v), want %v", x.set.Name, texts(have), err, x.want)
		}
	}
	ns.Exec(t, "ipset", "create", "other", "list:set")
	saved := ns.Exec(t, "ipset", "save")
	for _, x := range cases {
		if !strings.Contains(saved, x.tool+"\n") {
			t.Errorf("no %q in\n%s", x.tool, saved)
		}
	}
	list, err := c.List("braid-")
	if err != nil || len(list) != len(cases) {
		t.Fatalf("listed %+v (%v)", list, err)
	}
	gone := desired.IPSetOp{Verb: desired.IPSetDestroy, Set: desired.IPSet{Name: "braid-none"}}
	for i, x := range cases {
		if want := (Info{x.set, len(x.want), 0}); list[i] != want {
			t.Errorf("listed %+v, want %+v", list[i], want)
		}
		if err := c.Apply([]desired.IPSetOp{{Verb: desired.IPSetDestroy, Set: x.set}, gone}); err != nil {
			t.Error(err)
		}
	}
	if left := ns.Exec(t, "ipset", "list", "-n"); left != "other\n" {
		t.Errorf("left: %q", left)
	}
}

// TestManyMembers: more members than a message has place for, in both directions.
func TestManyMembers(t *testing.T) {
	_, c := open(t)
	set := desired.IPSet{Name: "braid-many", Type: desired.IPSetAddrPort, IPv6: true}
	list := many(set, 10000)
	if err := c.Apply([]desired.IPSetOp{{Verb: desired.IPSetCreate, Set: set}, {Verb: desired.IPSetAdd, Set: set, Members: list}}); err != nil {
		t.Fatal(err)
	}
	have, err := c.Read(set)
	if err != nil || !slices.Equal(texts(have), texts(list)) {
		t.Fatalf("read %d members (%v)", len(have), err)
	}
	if err := c.Apply([]desired.IPSetOp{{Verb: desired.IPSetRemove, Set: set, Members: list[1:]}}); err != nil {
		t.Fatal(err)
	}
	if all, err := c.List("braid"); err != nil || len(all) != 1 || all[0].Members != 1 {
		t.Errorf("left %+v (%v)", all, err)
	}
}

func many(s desired.IPSet, n int) (out []desired.IPSetMember) {
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		if s.IPv6 {
			a = netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})
		}
		m := desired.IPSetMember{Prefix: netip.PrefixFrom(a, a.BitLen())}
		if s.Type == desired.IPSetAddrPort {
			m.Protocol, m.Port = 6, 80
		}
		out = append(out, m)
	}
	return out
}

// TestRefusals: what cannot be is refused, with what and why, before the kernel sees it or by the kernel.
func TestRefusals(t *testing.T) {
	ns, c := open(t)
	addrs, nets := desired.IPSet{Name: "braid-a", Type: desired.IPSetAddr}, desired.IPSet{Name: "braid-n", Type: desired.IPSetNet}
	if err := c.Apply([]desired.IPSetOp{{Set: addrs}, {Set: nets}}); err != nil {
		t.Fatal(err)
	}
	ns.Exec(t, "iptables-nft", "-A", "INPUT", "-m", "set", "--match-set", "braid-a", "src", "-j", "DROP")
	for want, op := range map[string]desired.IPSetOp{
		"destroy ipset braid-a: a rule or another set refers to it":                                     {Verb: desired.IPSetDestroy, Set: addrs},
		"add to ipset braid-x: it is not there":                                                         {Verb: desired.IPSetAdd, Set: desired.IPSet{Name: "braid-x", Type: desired.IPSetAddr}, Members: members("10.0.0.1")},
		"add to ipset braid-a: it cannot have this member":                                              {Verb: desired.IPSetAdd, Set: addrs, Members: members("10.0.0.1", "0.0.0.0")},
		"add to ipset braid-a: fd00::1/128 is no masked prefix":                                         {Verb: desired.IPSetAdd, Set: addrs, Members: members("fd00::1")},
		"add to ipset braid-a: a set of type hash:ip cannot have 10.0.0.0/8":                            {Verb: desired.IPSetAdd, Set: addrs, Members: members("10.0.0.0/8")},
		"add to ipset braid-a: a set of type hash:ip cannot have 10.0.0.1,6:80":                         {Verb: desired.IPSetAdd, Set: addrs, Members: members("10.0.0.1,6:80")},
		"add to ipset braid-n: a set of type hash:net cannot have 0.0.0.0/0":                            {Verb: desired.IPSetAdd, Set: nets, Members: members("0.0.0.0/0")},
		"create ipset braid-a: it is there, and not as it has to be":                                    {Set: desired.IPSet{Name: "braid-a", Type: desired.IPSetNet}},
		"create ipset braid-456789012345678901234567: a set has a known type and a name of up to 31 by": {Set: desired.IPSet{Name: "braid-456789012345678901234567", Type: "hash:mac"}},
	} {
		if err := c.Apply([]desired.IPSetOp{op}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %q…", err, want)
		}
	}
	if list, err := c.List("braid-a"); err != nil || len(list) != 1 || list[0].References != 1 {
		t.Errorf("listed %+v (%v), want one reference", list, err)
	}
	if err := c.Apply([]desired.IPSetOp{{Verb: desired.IPSetDestroy, Set: addrs}}); !Busy(err) {
		t.Errorf("%v does not say that something refers to it", err)
	}
	if _, err := c.Read(desired.IPSet{Name: "braid-x"}); err == nil || !strings.HasPrefix(err.Error(), "read ipset braid-x: it is not there") {
		t.Errorf("error %v", err)
	}
	if have, err := c.Read(addrs); err != nil || !slices.Equal(texts(have), []string{"10.0.0.1"}) { // what came before the one refused
		t.Errorf("read %v (%v)", have, err)
	}
}

// TestKernelFails: errors of a kernel that is not this one are passed on with their meaning, and reading is tried again
// while somebody else changes sets.
func TestKernelFails(t *testing.T) {
	reads := 0
	for number, want := range map[syscall.Errno]string{
		nl.IPSET_ERR_FIND_TYPE: "the kernel does not have this type of set", nl.IPSET_ERR_TYPE_SPECIFIC: "it is full",
		nl.IPSET_ERR_PROTOCOL: "refused with ipset error 1", syscall.ENOMEM: "cannot allocate memory", syscall.EPERM: "NET_ADMIN",
	} {
		c := &Conn{execute: func(*nl.NetlinkRequest, func([]byte)) error { reads++; return number }}
		err := c.Apply([]desired.IPSetOp{{Set: desired.IPSet{Name: "x", Type: desired.IPSetAddr}}})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "create ipset x: ") {
			t.Errorf("%d: error %v, want %q", number, err, want)
		}
	}
	reads = 0
	c := &Conn{execute: func(*nl.NetlinkRequest, func([]byte)) error {
		if reads++; reads < dumpTries {
			return syscall.EINTR
		}
		return nil
	}}
	if _, err := c.List(""); err != nil || reads != dumpTries {
		t.Errorf("%d reads, %v", reads, err)
	}
}

// FuzzParse: whatever comes, reading ends, and gives only members with addresses.
func FuzzParse(f *testing.F) {
	for _, s := range []desired.IPSet{{Name: "a", Type: desired.IPSetAddr}, {Name: "p", Type: desired.IPSetAddrPort, IPv6: true}} {
		r, _, err := change(nl.IPSET_CMD_ADD, s, many(s, 2))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(r.Serialize()[16:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseInfo(b); err != nil {
			return
		}
		_ = parseMembers(b, func(m desired.IPSetMember) {
			if !m.Prefix.IsValid() {
				t.Errorf("a member %+v", m)
			}
		})
	})
}
