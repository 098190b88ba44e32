package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/egress"
)

// forwardRun is a node whose FORWARD others may close, with one variant of the tools.
type forwardRun struct {
	*egressRun
	*forwarding
	tool string // iptables of the variant
}

func newForwardRun(t *testing.T, v ipt.Variant) *forwardRun {
	r := &forwardRun{egressRun: &egressRun{Node: wire.New(t), t: t}, tool: "iptables-" + string(v)}
	needVariant(t, v)
	r.Shut = true
	r.restart(true)
	return r
}

// restart is an agent that starts, with the setting.
func (r *forwardRun) restart(on bool) {
	r.t.Helper()
	c := DefaultConfig()
	c.Node, c.ForwardRules, c.Log = "n1", on, slog.New(slog.DiscardHandler)
	if err := r.Do(func() (err error) { r.forwarding, err = newForwarding(c); return err }); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.forwarding.close)
	p := netip.MustParsePrefix
	r.note(1, []model.Change{r.node("n1", wire.Own(true)[0], wire.Pods, wire.Pods6),
		r.node("n2", netip.MustParseAddr("198.51.100.2"), p("10.244.2.0/24"), p("fd00:10:244:2::/64"))})
}

// both runs the tool for both families.
func (r *forwardRun) both(args string) {
	r.t.Helper()
	r.Exec(r.t, "sh", "-ec", r.tool+" "+args+"; ip6"+strings.TrimPrefix(r.tool, "ip")+" "+args)
}

// step does one, late enough to see what no number tells of, and returns what it says.
func (r *forwardRun) step() (changes []string, summary string, notes string) {
	r.t.Helper()
	for _, p := range r.places {
		if !p.looked.IsZero() {
			p.looked = p.looked.Add(-forwardBlind)
		}
	}
	r.looked = time.Time{}
	err := r.Do(func() error {
		out, err := r.forwarding.step(r.t.Context())
		changes, summary, notes = out.Changes, out.Summary, strings.Join(out.Notes, "\n")
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return changes, summary, notes
}

// passing wants packets from, to and between pods to pass, or not, and what concerns no pod dropped or not.
func (r *forwardRun) passing(when string, pods, others bool) {
	r.t.Helper()
	for _, c := range []struct {
		src, dst string
		want     bool
	}{
		{"10.244.1.11", "203.0.113.9", pods}, {"203.0.113.9", "10.244.1.11", pods}, {"10.244.1.11", "10.244.2.11", pods}, {"203.0.113.9", "10.244.2.11", pods},
		{"fd00:10:244:1::11", "2001:db8:203::9", pods}, {"2001:db8:203::9", "fd00:10:244:1::11", pods}, {"fd00:10:244:2::11", "fd00:10:244:1::11", pods},
		{"203.0.113.9", "198.51.100.7", others}, {"2001:db8:203::9", "2001:db8:51::7", others},
	} {
		if f := r.Send(r.packet(wire.TCP, c.src, c.dst, 80)); (f.Sent != nil) != c.want {
			r.t.Errorf("%s: from %s to %s passes: %v\n%s", when, c.src, c.dst, f.Sent != nil, r.saved())
		}
	}
}

func (r *forwardRun) saved() string {
	return r.Exec(r.t, r.tool+"-save", "-t", "filter") + r.Exec(r.t, "ip6"+strings.TrimPrefix(r.tool, "ip")+"-save", "-t", "filter")
}

// TestForwardPolicyDrop: a node whose FORWARD drops, as Docker's does, lets pods through, and nobody else.
func TestForwardPolicyDrop(t *testing.T) {
	for _, v := range ipt.Variants {
		t.Run(string(v), func(t *testing.T) {
			r := newForwardRun(t, v)
			if changes, summary, notes := r.step(); len(changes) > 0 || notes != "" || summary != "iptables drops nothing that is forwarded" {
				t.Errorf("on a node without iptables: %q %q %q", changes, summary, notes)
			}
			if tables := r.Exec(t, "sh", "-c", "nft list tables; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names"); tables != "" {
				t.Errorf("a look made tables: %s", tables)
			}
			r.passing("before", true, true)
			r.both("-P FORWARD DROP")
			r.passing("without rules of ours", false, false)
			changes, summary, notes := r.step()
			if len(changes) != 2 || notes != "" || !strings.Contains(summary, fmt.Sprintf("pass: IPv4 (%s), IPv6 (%s)", v, v)) {
				t.Errorf("when it drops: %q %q %q", changes, summary, notes)
			}
			r.passing("when the policy is DROP", true, false)
			settled := r.saved()
			if changes, _, _ := r.step(); len(changes) > 0 {
				t.Errorf("a step with nothing to do did %q", changes)
			}
			for _, harm := range []string{"-F", "-F " + egress.ForwardChain, "-D FORWARD 1", "-A " + egress.ForwardChain + " -j RETURN",
				"-I " + egress.ForwardChain + " -j DROP", "-A FORWARD -j " + egress.ForwardChain} {
				if strings.HasPrefix(harm, "-A FORWARD") && v == ipt.NFT {
					continue // harmless, and costs a look at all rules to see
				}
				r.both(harm)
				if changes, _, _ := r.step(); len(changes) != 2 {
					t.Errorf("after %s: %q", harm, changes)
				}
				r.passing("after "+harm, true, false)
				if got := r.saved(); withoutNotes(got) != withoutNotes(settled) {
					t.Errorf("after %s the kernel holds\n%s\nand before\n%s", harm, got, settled)
				}
			}
			// What a rule drops stays dropped: it is the policy whose place ours take.
			r.both("-I FORWARD 1 -p tcp --dport 80 -j DROP")
			r.both("-D FORWARD 2")
			r.step()
			r.passing("when a rule drops", false, false)
			r.both("-D FORWARD 1")
			r.passing("when it is gone", true, false)

			r.restart(true) // the next agent writes nothing
			if changes, _, _ := r.step(); len(changes) > 0 {
				t.Errorf("after a restart: %q", changes)
			}
			r.both("-P FORWARD ACCEPT")
			r.step()
			if got := r.saved(); strings.Contains(got, "BRAID") {
				t.Errorf("where nothing is dropped, rules stay:\n%s", got)
			}
			r.passing("after the policy was changed back", true, true)
			r.both("-P FORWARD DROP")
			r.step()
			r.restart(false)
			if _, summary, _ := r.step(); summary != "iptables-forward-rules: false" || strings.Contains(r.saved(), "BRAID") {
				t.Errorf("switched off: %q\n%s", summary, r.saved())
			}
			r.restart(true)
			r.step()
			var removed []string
			r.Run(t, func() (err error) { removed, err = removeForwarding(); return err })
			want := []string{"iptables chain BRAIDFWD-PODS of IPv4 (" + string(v) + ")", "iptables chain BRAIDFWD-PODS of IPv6 (" + string(v) + ")"}
			if !slices.Equal(removed, want) || strings.Contains(r.saved(), "BRAID") {
				t.Errorf("cleanup removed %q and leaves\n%s", removed, r.saved())
			}
		})
	}
}

// TestForwardServices: connections of services that lead elsewhere than to pods pass too.
func TestForwardServices(t *testing.T) {
	r := newForwardRun(t, ipt.NFT)
	r.both("-P FORWARD DROP")
	r.Exec(t, "nft", "table ip svc { chain pre { type nat hook prerouting priority dstnat; ip daddr 172.16.5.5 meta mark set meta mark or 0x4000 dnat to 198.51.100.7; }; }")
	r.step()
	if f := r.Send(r.packet(wire.TCP, "203.0.113.9", "172.16.5.5", 80)); f.Sent == nil {
		t.Errorf("a masqueraded connection does not pass\n%s", r.saved())
	}
	if f := r.Send(r.packet(wire.TCP, "203.0.113.9", "198.51.100.7", 80)); f.Sent != nil {
		t.Error("a connection that is nobody's passes")
	}
}

// TestForwardFollowsNodes: pods of a node that joins pass, those of one that left do not.
func TestForwardFollowsNodes(t *testing.T) {
	r := newForwardRun(t, ipt.NFT)
	r.both("-P FORWARD DROP")
	r.step()
	asks := func(want bool) {
		t.Helper()
		if f := r.Send(r.packet(wire.TCP, "203.0.113.9", "10.99.0.5", 80)); (f.Sent != nil) != want {
			t.Errorf("a packet to the node's pods passes: %v, want %v", f.Sent != nil, want)
		}
	}
	asks(false)
	n3 := r.node("n3", netip.MustParseAddr("198.51.100.3"), netip.MustParsePrefix("10.99.0.0/24"))
	if !r.note(2, []model.Change{n3}) {
		t.Error("a node that joins is of no concern")
	}
	r.step()
	asks(true)
	r.note(3, []model.Change{{Ref: n3.Ref}})
	r.step()
	asks(false)
}

// TestForwardWalls: what drops by rules, or in tables of others, is named.
func TestForwardWalls(t *testing.T) {
	for _, c := range []struct{ set, want string }{
		{"nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; ct state established accept; reject with icmpx admin-prohibited; }; }'",
			"nftables table inet firewalld, chain filter_FORWARD, rejects all that its own rules do not let through: tell its owner about pods' ranges, 10.244.1.0/24 10.244.2.0/24"},
		{"nft 'table ip wall { chain f { type filter hook forward priority 5; policy drop; }; }'", "nftables table ip wall, chain f, drops all"},
		{"nft 'table ip wall { chain f { type filter hook input priority 5; policy drop; }; }'", ""},
		{"nft 'table ip braid-x { chain f { type filter hook forward priority 5; policy drop; }; }'", ""},
		{"iptables-nft -A FORWARD -i lo -j ACCEPT; iptables-nft -A FORWARD -m comment --comment all -j REJECT", "a rule in FORWARD of iptables, IPv4 (nft), rejects all"},
		{"ip6tables-legacy -A FORWARD -j DROP", "a rule in FORWARD of iptables, IPv6 (legacy), drops all"},
		{"ip6tables-legacy -A FORWARD -p tcp -j DROP; iptables-nft -A FORWARD -s 192.0.2.0/24 -j DROP", ""},
	} {
		r := newForwardRun(t, ipt.Legacy)
		r.step() // the agent was there first
		r.Exec(t, "sh", "-ec", c.set)
		if _, _, notes := r.step(); !strings.Contains(notes, c.want) || (c.want == "") != (notes == "") {
			t.Errorf("%s\nnotes %q\nwant  %q", c.set, notes, c.want)
		}
		r.restart(false)
		if _, _, notes := r.step(); notes != "" {
			t.Errorf("%s: switched off, and notes %q", c.set, notes)
		}
	}
}
