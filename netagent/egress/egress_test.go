package egress

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/model"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func node(name string, cidrs []netip.Prefix, addrs ...string) *model.Node {
	n := &model.Node{PodCIDRs: cidrs}
	n.Kind, n.Name = model.KindNode, name
	for _, a := range addrs {
		n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(a))
	}
	return n
}

func set(n *model.Node) model.Change { return model.Change{Ref: n.Ref, New: n} }

func TestRulesFollowNodes(t *testing.T) {
	p := NewPlanner(Config{Node: "n1", Masquerade: true, Cluster: prefixes("10.99.0.0/16"), Keep: prefixes("172.16.0.0/12", "10.244.2.0/25")})
	p.Apply(1, []model.Change{
		set(node("n1", prefixes("10.244.1.0/24", "fd00:1::/64"), "192.0.2.1", "2001:db8::1")),
		set(node("n2", prefixes("10.244.2.0/24"), "192.0.2.2")),
		set(node("n3", prefixes("10.244.3.0/24"))),
	})
	want := Rules{Masquerade: true, Pods: prefixes("10.244.1.0/24", "fd00:1::/64"), Cluster: prefixes("10.99.0.0/16", "10.244.1.0/24", "10.244.2.0/23", "fd00:1::/64"),
		Own: prefixes("10.99.0.0/16", "10.244.1.0/24", "10.244.2.0/23", "172.16.0.0/12", "fd00:1::/64"), Nodes: prefixes("192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128")}
	if got := p.Rules(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if p.Dirty() {
		t.Error("rules that were fetched count as changed")
	}
	was := node("n3", prefixes("10.244.3.0/24"))
	was.Taints = []string{"some"}
	if p.Apply(2, []model.Change{set(was)}); p.Dirty() {
		t.Error("a taint changes nothing here")
	}
	if p.Apply(3, []model.Change{{Ref: was.Ref}}); !p.Dirty() || len(p.Rules().Cluster) != 4 || p.Rules().Cluster[2] != netip.MustParsePrefix("10.244.2.0/24") {
		t.Errorf("a node left: %v", p.Rules().Cluster)
	}
}

// world makes rules at random.
type world struct{ *rand.Rand }

func (w world) rules(o Overlay, masquerade bool) *Rules {
	p := NewPlanner(Config{Node: "n0", Masquerade: masquerade, Overlay: o, Keep: w.some("172.%d.0.0/16", "2001:db8:%d::/48")})
	for i := range w.IntN(5) {
		n := node(fmt.Sprintf("n%d", i), w.some("10.244.%d.0/24", "fd00:%d::/64"))
		for _, a := range w.some("192.0.2.%d/32", "2001:db8::%d/128") {
			n.InternalIPs = append(n.InternalIPs, a.Addr())
		}
		p.Apply(1, []model.Change{set(n)})
	}
	r := p.Rules()
	return &r
}

func (w world) some(forms ...string) (out []netip.Prefix) {
	for _, f := range forms {
		for range w.IntN(3) {
			out = append(out, netip.MustParsePrefix(fmt.Sprintf(f, w.IntN(8))))
		}
	}
	return out
}

var overlays = []Overlay{{}, {Links: "braid.", UDPPorts: []uint16{8472}, Tracked: true}, {Links: "braid.", UDPPorts: []uint16{51820}, Authentic: true}, {Links: "braid.", Protocols: []uint8{4, 41}, Tracked: true}}

// kernel holds nftables as operations make them.
type kernel struct {
	t  *testing.T
	in Contents
}

func (k kernel) do(ops []desired.NFTOp) {
	k.t.Helper()
	for i, op := range ops {
		c := k.in[op.Family]
		switch {
		case op.Join != (i > 0) || op.Table != TableName:
			k.t.Fatalf("operation %d of %d is not in the one transaction on our tables: %+v", i, len(ops), op)
		case op.Verb == desired.NFTDeleteTable && c != nil:
			delete(k.in, op.Family)
		case op.Verb == desired.NFTAddTable && c == nil:
			c = &desired.NFTContents{Comment: op.Def.Comment, Rules: map[string][]string{}, Sets: map[string]bool{}}
			for _, s := range op.Def.Sets {
				c.Sets[s.Name] = true
			}
			for _, chain := range op.Def.Chains {
				c.Rules[chain.Name] = nil
				for _, r := range chain.Rules {
					c.Rules[chain.Name] = append(c.Rules[chain.Name], r.Comment)
				}
			}
			k.in[op.Family] = c
		case op.Verb == desired.NFTDeleteElement && c != nil && slices.Contains(c.Elements, *op.Element):
			gone := *op.Element
			c.Elements = slices.DeleteFunc(slices.Clone(c.Elements), func(e desired.NFTElement) bool { return e == gone })
		case op.Verb == desired.NFTAddElement && c != nil && c.Sets[op.Element.Set]:
			for _, e := range c.Elements {
				if e.Set == op.Element.Set && e.Key < op.Element.End && op.Element.Key < e.End {
					k.t.Fatalf("range %+v overlaps %+v", op.Element, e)
				}
			}
			c.Elements = append(c.Elements, *op.Element)
		default:
			k.t.Fatalf("cannot %s", op)
		}
	}
}

// holds fails unless the kernel has what somebody who knows nothing of it would write.
func (k kernel) holds(what string, r *Rules) {
	k.t.Helper()
	fresh := State{Families: Families}
	ops, why := fresh.Replace(r, k.in)
	if len(ops) > 0 {
		k.t.Fatalf("%s: the kernel lacks %v (%v)", what, ops, why)
	}
}

func TestStateChanges(t *testing.T) {
	for seed := range uint64(60) {
		w := world{rand.New(rand.NewPCG(seed, 1))}
		k, s := kernel{t, Contents{}}, State{Families: Families}
		o, masquerade := overlays[w.IntN(len(overlays))], w.IntN(4) > 0
		if _, err := s.Apply(w.rules(o, masquerade)); err == nil {
			t.Fatal("a change of what is not known is no error")
		}
		for range 8 {
			r := w.rules(o, masquerade)
			if w.IntN(4) == 0 { // an agent that starts, perhaps with other settings
				o, masquerade = overlays[w.IntN(len(overlays))], w.IntN(4) > 0
				r, s = w.rules(o, masquerade), State{Families: Families}
			}
			if w.IntN(4) == 0 {
				delete(k.in, desired.NFTIPv4)
				s.Forget()
			}
			if ops, err := s.Apply(r); err == nil {
				k.do(ops)
			} else {
				ops, _ = s.Replace(r, k.in)
				k.do(ops)
			}
			k.holds(fmt.Sprintf("seed %d", seed), r)
			if r.Empty() && len(k.in) > 0 {
				t.Fatalf("seed %d: tables are left with nothing to do", seed)
			}
		}
	}
}

// TestOtherAddressesOfNodes: those that nodes say of themselves besides their InternalIPs are guarded too.
func TestOtherAddressesOfNodes(t *testing.T) {
	p := NewPlanner(Config{Node: "n1", Reached: func(n *model.Node) (out []netip.Addr) {
		for _, a := range n.Annotations {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}})
	n := node("n2", nil, "192.0.2.2")
	n.Annotations = map[string]string{"also": "198.51.100.2"}
	p.Apply(1, []model.Change{set(n)})
	if got := p.Rules().Nodes; !slices.Equal(got, prefixes("192.0.2.2/32", "198.51.100.2/32")) {
		t.Errorf("nodes are at %v", got)
	}
	if p.Apply(2, []model.Change{set(node("n2", nil, "192.0.2.2"))}); !p.Dirty() {
		t.Error("an address that went is not noted")
	}
}

func TestNodesAreElements(t *testing.T) {
	p := NewPlanner(Config{Node: "n1", Masquerade: true})
	p.Apply(1, []model.Change{set(node("n1", prefixes("10.244.1.0/24"), "192.0.2.1"))})
	k, s, r := kernel{t, Contents{}}, State{Families: Families}, p.Rules()
	ops, _ := s.Replace(&r, k.in)
	k.do(ops)
	p.Apply(2, []model.Change{set(node("n9", prefixes("10.244.9.0/24"), "192.0.2.9"))})
	r = p.Rules()
	if ops, _ = s.Apply(&r); len(ops) != 3 {
		t.Errorf("a new node is %v, want two ranges of pods and an address", ops)
	}
	for _, op := range ops {
		if op.Verb != desired.NFTAddElement {
			t.Errorf("a new node needs %s", op)
		}
	}
}

func TestDamageIsSeen(t *testing.T) {
	w := world{rand.New(rand.NewPCG(1, 1))}
	r := w.rules(overlays[1], true)
	for what, meddle := range map[string]func(*desired.NFTContents){
		"comment": func(c *desired.NFTContents) { c.Comment = "other" },
		"rule":    func(c *desired.NFTContents) { c.Rules["postrouting"] = c.Rules["postrouting"][1:] },
		"chain":   func(c *desired.NFTContents) { delete(c.Rules, "input") },
		"foreign": func(c *desired.NFTContents) { c.Rules["more"] = nil },
		"set":     func(c *desired.NFTContents) { delete(c.Sets, setNodes) },
		"element": func(c *desired.NFTContents) { c.Elements = c.Elements[1:] },
		"ranges": func(c *desired.NFTContents) {
			c.Elements = append(c.Elements, desired.NFTElement{Set: setOwn, Key: "\xcb\x00\x71\x00", End: "\xcb\x00\x72\x00"})
		},
	} {
		k, s := kernel{t, Contents{}}, State{Families: Families}
		ops, _ := s.Replace(r, k.in)
		k.do(ops)
		meddle(k.in[desired.NFTIPv4])
		ops, why := s.Replace(r, k.in)
		k.do(ops)
		k.holds(what, r)
		if len(why) != 1 {
			t.Errorf("%s: made anew because of %q", what, why)
		}
	}
}

// restore does to chains what iptables-restore --noflush does.
func restore(t *testing.T, saved xt.Saved, input string) {
	t.Helper()
	table := ""
	for _, l := range strings.Split(strings.TrimSpace(input), "\n") {
		words := strings.SplitN(l, " ", 3)
		c := saved[table]
		switch {
		case l[0] == '*':
			table = l[1:]
		case l[0] == ':':
			c[words[0][1:]] = nil
		case words[0] == "-A":
			c[words[1]] = append(c[words[1]], words[2])
		case words[0] == "-I":
			c[words[1]] = append([]string{strings.TrimPrefix(words[2], "1 ")}, c[words[1]]...)
		case words[0] == "-D":
			i := slices.Index(c[words[1]], words[2])
			if i < 0 {
				t.Fatalf("%s: no such rule in %v", l, c)
			}
			c[words[1]] = slices.Delete(c[words[1]], i, i+1)
		case words[0] == "-X":
			delete(c, words[1])
		case l != "COMMIT":
			t.Fatalf("%q is no line of ours", l)
		}
	}
}

func TestIPTablesChanges(t *testing.T) {
	for seed := range uint64(60) {
		w := world{rand.New(rand.NewPCG(seed, 2))}
		saved := xt.Saved{"nat": {"POSTROUTING": {"-j KUBE-POSTROUTING"}, "BRAID-POSTROUTING": {"-j RETURN"}}, "mangle": {"INPUT": nil, "FORWARD": {"-j DOCKER-USER"}}}
		for range 8 {
			nf := Families[seed%2]
			r := w.rules(overlays[w.IntN(len(overlays))], w.IntN(4) > 0)
			switch w.IntN(4) {
			case 0:
				saved["nat"]["POSTROUTING"] = append(saved["nat"]["POSTROUTING"], `-m comment --comment "braid egress" -j BRAID_MASQUERADE`, "-s 192.0.2.0/24 -j BRAID_MASQUERADE")
				saved["nat"]["BRAID_OLD"] = []string{"-j RETURN"}
			case 1:
				for chain := range saved["mangle"] {
					saved["mangle"][chain] = nil
				}
			}
			if in := Input(nf, r, saved); in != "" {
				if _, there := saved["nat"][chainMasquerade]; !there { // a rule cannot lead to a chain that is not there
					saved["nat"]["POSTROUTING"] = slices.DeleteFunc(saved["nat"]["POSTROUTING"], func(x string) bool { return strings.HasSuffix(x, "MASQUERADE") })
					in = Input(nf, r, saved)
				}
				restore(t, saved, in)
			}
			if again := Input(nf, r, saved); again != "" {
				t.Fatalf("seed %d: after it was written, this is wanted:\n%s\nof %+v", seed, again, saved)
			}
			if len(saved["nat"]["BRAID-POSTROUTING"]) != 1 || !slices.Contains(saved["nat"]["POSTROUTING"], "-j KUBE-POSTROUTING") {
				t.Fatalf("seed %d: others' rules are gone: %v", seed, saved)
			}
			if r.Empty() && (len(saved["nat"]) > 2 || len(saved["mangle"]) > 2) {
				t.Fatalf("seed %d: with nothing to do this is left: %v", seed, saved)
			}
		}
	}
}

func TestIPTablesGolden(t *testing.T) {
	r := &Rules{Masquerade: true, Pods: prefixes("10.244.1.0/24"), Cluster: prefixes("10.244.0.0/16"), Own: prefixes("10.244.0.0/16", "172.16.0.0/12"),
		Nodes: prefixes("192.0.2.1/32"), Overlay: Overlay{Links: "braid.", UDPPorts: []uint16{8472}}}
	want := `*nat
:BRAID_MASQUERADE - [0:0]
:BRAID_PODS - [0:0]
:BRAID_TUNNEL - [0:0]
-A BRAID_MASQUERADE -m mark --mark 0x4000/0x4000 -m comment --comment "braid whoever marked it replaces the source" -j RETURN
-A BRAID_MASQUERADE -s 10.244.1.0/24 -m comment --comment "braid pods of this node" -j BRAID_PODS
-A BRAID_MASQUERADE -d 10.244.0.0/16 -o braid.+ -m comment --comment "braid by a tunnel" -j BRAID_TUNNEL
-A BRAID_PODS -d 10.244.0.0/16 -m comment --comment "braid pods keep their address" -j RETURN
-A BRAID_PODS -d 172.16.0.0/12 -m comment --comment "braid pods keep their address" -j RETURN
-A BRAID_PODS -d 224.0.0.0/4 -m comment --comment "braid multicast" -j RETURN
-A BRAID_PODS -m comment --comment "braid pods to the world outside" -j MASQUERADE --random-fully
-A BRAID_TUNNEL -s 10.244.0.0/16 -m comment --comment "braid pods keep their address" -j RETURN
-A BRAID_TUNNEL -m comment --comment "braid by a tunnel, only pods by their own addresses" -j MASQUERADE --random-fully
-A POSTROUTING -m comment --comment "braid egress" -j BRAID_MASQUERADE
COMMIT
*mangle
:BRAID_FORWARD - [0:0]
:BRAID_INPUT - [0:0]
-A BRAID_FORWARD -s 10.244.1.0/24 -d 192.0.2.1/32 -p udp -m udp --dport 8472 -m comment --comment "braid a pod makes no packets of the overlay" -j DROP
-A BRAID_FORWARD -d 10.244.0.0/16 -p udp -m udp --dport 8472 -m comment --comment "braid between pods" -j RETURN
-A BRAID_FORWARD -s 10.244.1.0/24 -p udp -m udp --dport 8472 -m comment --comment "braid a pod makes no packets of the overlay" -j DROP
-A BRAID_INPUT -s 10.244.1.0/24 -p udp -m udp --dport 8472 -m comment --comment "braid a pod makes no packets of the overlay" -j DROP
-A BRAID_INPUT -i braid.+ -p udp -m udp --dport 8472 -m comment --comment "braid the overlay carries none of its own" -j DROP
-I INPUT 1 -m comment --comment "braid egress" -j BRAID_INPUT
-I FORWARD 1 -m comment --comment "braid egress" -j BRAID_FORWARD
COMMIT
`
	if got := Input(desired.NFTIPv4, r, xt.Saved{}); got != want {
		t.Errorf("got\n%s", got)
	}
}
