package overlay

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// wgKey is a key that differs from others by its first byte.
func wgKey(b byte) string { return desired.WGKey{b, 1}.String() }

func keyed(n *model.Node, keys ...string) *model.Node {
	n.Annotations = map[string]string{KeyAnnotation: strings.Join(keys, " ")}
	return n
}

func TestWireGuardPeers(t *testing.T) {
	self := keyed(node("a", dualCIDR, dualIP), wgKey(1))
	b := func(keys ...string) *model.Node {
		return keyed(node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.7.2,fd00:7::2"), keys...)
	}
	c := func(keys ...string) *model.Node { return keyed(node("c", "10.244.3.0/24", "192.168.7.3"), keys...) }
	const toB = "WireGuard peer KEY2 at 192.168.7.2:51820 with [10.244.2.0/24 fd00:10:244:2::/64]"
	for name, tc := range map[string]struct {
		peers []*model.Node
		want  []string // with KEYn for wgKey(n), sorted by key
		notes []string
	}{
		"both families through one tunnel":    {[]*model.Node{b(wgKey(2))}, []string{toB}, nil},
		"the next key is known, with nothing": {[]*model.Node{b(wgKey(2), wgKey(3))}, []string{toB, "WireGuard peer KEY3 at 192.168.7.2:51820 with []"}, nil},
		"over IPv6 where there is no IPv4": {[]*model.Node{keyed(node("b", "10.244.2.0/24", "fd00:7::2"), wgKey(2))},
			[]string{"WireGuard peer KEY2 at [fd00:7::2]:51820 with [10.244.2.0/24]"}, nil},
		"no key":           {[]*model.Node{b()}, nil, []string{"node b: its pods are not reached: it has no annotation"}},
		"nonsense":         {[]*model.Node{b("x=1\nprivate_key=0")}, nil, []string{"node b: its pods are not reached: annotation"}},
		"the key of zeros": {[]*model.Node{b(desired.WGKey{}.String())}, nil, []string{"belongs to nobody"}},
		"too many keys":    {[]*model.Node{b(wgKey(2), wgKey(3), wgKey(4))}, nil, []string{"3 keys"}},
		"one key twice":    {[]*model.Node{b(wgKey(2), wgKey(2))}, nil, []string{"one key twice"}},
		"our key":          {[]*model.Node{b(wgKey(1)), c(wgKey(3))}, []string{"WireGuard peer KEY3 at 192.168.7.3:51820 with [10.244.3.0/24]"}, []string{"node b: its pods are not reached: its public key " + wgKey(1) + " is that of node a too"}},
		"another's key":    {[]*model.Node{b(wgKey(2)), c(wgKey(3), wgKey(2))}, nil, []string{"node b: its pods are not reached: its public key", "node c: its pods are not reached: its public key"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := input("wireguard", self, tc.peers...)
			in.WireGuard.Port = 51820
			net, notes := Plan(in)
			var got []string
			for _, p := range net.WireGuard.Peers {
				got = append(got, p.String())
			}
			want := strings.Join(tc.want, "\n")
			for i := byte(1); i < 5; i++ {
				want = strings.ReplaceAll(want, "KEY"+string('0'+i), wgKey(i))
			}
			if strings.Join(got, "\n") != want {
				t.Errorf("peers\n%s\nwant\n%s", strings.Join(got, "\n"), want)
			}
			if len(notes) != len(tc.notes) {
				t.Fatalf("notes %q, want %q", notes, tc.notes)
			}
			for i := range notes {
				if !strings.Contains(notes[i].String(), tc.notes[i]) {
					t.Errorf("note %q, want %q in it", notes[i], tc.notes[i])
				}
			}
			// Also what has no key yet must not leave through another device.
			for _, p := range tc.peers {
				for _, cidr := range p.PodCIDRs {
					if !routed(net, cidr.String(), "braid.wg") {
						t.Errorf("no route to %s: it would leave unencrypted", cidr)
					}
				}
			}
			if mtu, why := MTU(in); mtu != 1440 && mtu != 1400 || !strings.Contains(why, "WireGuard") {
				t.Errorf("MTU %d: %s", mtu, why)
			}
		})
	}
}

// detoured is a node that says of its detour what text says.
func detoured(n *model.Node, text string) *model.Node {
	n.Annotations[DetourAnnotation] = text
	return n
}

// TestWireGuardDetours: who replaces a key gets packets by the second device, as far as there are sessions.
func TestWireGuardDetours(t *testing.T) {
	toB, toC := netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("10.244.3.0/24")
	key := func(b byte) desired.WGKey { return desired.WGKey{b, 1} }
	one := func(p netip.Prefix) *desired.Steering { return &desired.Steering{Prefixes: []netip.Prefix{p}} }
	for name, tc := range map[string]struct {
		own   peer.Phase
		b, c  string // what they say of their detours, whose keys are 12 and 13
		up    []byte
		steer *desired.Steering // nil: no detour at all
		peers int
		awake int // peers of the first device that are kept awake
		notes int
	}{
		"nothing is replaced":             {peer.Steady, wgKey(12), wgKey(13), nil, nil, 0, 0, 0},
		"b does, no session yet":          {peer.Steady, wgKey(12) + " leave", wgKey(13), nil, &desired.Steering{}, 1, 0, 0},
		"b does, one is there":            {peer.Steady, wgKey(12) + " leave", wgKey(13), []byte{12, 13}, one(toB), 1, 0, 0},
		"b has the next key":              {peer.Steady, wgKey(12) + " away", wgKey(13), []byte{12}, one(toB), 1, 1, 0},
		"b is back":                       {peer.Steady, wgKey(12) + " return", wgKey(13), []byte{12}, &desired.Steering{}, 1, 0, 0},
		"this node does":                  {peer.Leave, wgKey(12), wgKey(13), []byte{12, 13}, &desired.Steering{All: true}, 2, 0, 0},
		"this node does, c is late":       {peer.Away, wgKey(12), wgKey(13), []byte{12}, one(toB), 2, 2, 0},
		"this node does, c knows nothing": {peer.Leave, wgKey(12), "", []byte{12}, one(toB), 1, 0, 0},
		"this node is back, c leaves":     {peer.Return, wgKey(12), wgKey(13) + " leave", []byte{12, 13}, one(toC), 2, 0, 0},
		"a word nobody knows":             {peer.Steady, wgKey(12) + " fly", wgKey(13), []byte{12}, nil, 0, 0, 1},
		"too many words":                  {peer.Steady, wgKey(12) + " leave now", wgKey(13), []byte{12}, nil, 0, 0, 1},
		"no key":                          {peer.Steady, "leave", wgKey(13), []byte{12}, nil, 0, 0, 1},
		"the key of c's detour":           {peer.Steady, wgKey(13) + " leave", wgKey(13), []byte{13}, nil, 0, 0, 2},
		"the key of c":                    {peer.Steady, wgKey(3) + " leave", wgKey(13), []byte{3}, nil, 0, 0, 1},
		"this node's":                     {peer.Steady, wgKey(11) + " leave", wgKey(13), []byte{11}, nil, 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			in := input("wireguard", detoured(keyed(node("a", "10.244.1.0/24", "192.168.7.1"), wgKey(1)), wgKey(11)),
				detoured(keyed(node("b", toB.String(), "192.168.7.2"), wgKey(2)), tc.b), detoured(keyed(node("c", toC.String(), "192.168.7.3"), wgKey(3)), tc.c))
			in.WireGuard = peer.WireGuard{Port: 51820, Phase: tc.own, Up: map[desired.WGKey]bool{}}
			for _, b := range tc.up {
				in.WireGuard.Up[key(b)] = true
			}
			net, notes := Plan(in)
			if len(notes) != tc.notes || len(net.WireGuard.Peers) != 2 || len(net.Routes) != 2 {
				t.Fatalf("notes %q, %v, %v: want %d notes, and both reached all the same", notes, net.WireGuard.Peers, net.Routes, tc.notes)
			}
			awake := 0
			for _, p := range net.WireGuard.Peers {
				if p.Keepalive > 0 {
					awake++
				}
			}
			if awake != tc.awake {
				t.Errorf("%d peers are kept awake, want %d", awake, tc.awake)
			}
			if (net.Detour == nil) != (tc.steer == nil) || len(net.Links) == 2 != (tc.steer != nil) {
				t.Fatalf("detour %+v, links %v", net.Detour, net.Links)
			}
			if net.Detour == nil {
				return
			}
			if got := net.Detour.Steer; got.All != tc.steer.All || !slices.Equal(got.Prefixes, tc.steer.Prefixes) {
				t.Errorf("by the detour goes %s, want %s", got, tc.steer)
			}
			if len(net.Detour.Peers) != tc.peers {
				t.Errorf("%d peers, want %d", len(net.Detour.Peers), tc.peers)
			}
			for _, p := range net.Detour.Peers {
				if p.Endpoint.Port() != 51821 || len(p.Allowed) != 1 || p.Keepalive == 0 || p.Key[0] < 12 {
					t.Errorf("%s, kept awake every %d s", p, p.Keepalive)
				}
			}
		})
	}
}

func routed(net desired.Network, dst, dev string) bool {
	for _, r := range net.Routes {
		if r.Dst.String() == dst && r.Dev == dev {
			return true
		}
	}
	return false
}

// FuzzNodeAnnotations reads what any node may write: nothing but valid keys and addresses comes out.
func FuzzNodeAnnotations(f *testing.F) {
	f.Add(wgKey(2)+" "+wgKey(3), "02:00:00:00:00:01", wgKey(4)+" leave")
	f.Add("\x00", "ff:ff:ff:ff:ff:ff", wgKey(4)+" \x00")
	f.Add(strings.Repeat("A", 44)+"=", "", "away")
	f.Fuzz(func(t *testing.T, keys, mac, detour string) {
		n := node("b", "10.244.2.0/24", "192.168.0.2")
		n.Annotations = map[string]string{KeyAnnotation: keys, MACAnnotation: mac, DetourAnnotation: detour}
		if d, err := PublicDetour(n); err != nil && d != (peer.Detour{}) || d.Phase.Detours() && d.Key == (desired.WGKey{}) {
			t.Fatalf("%+v, %v", d, err)
		} else if again, err := PublicDetour(&model.Node{Annotations: map[string]string{DetourAnnotation: DetourText(d)}}); d.Key != (desired.WGKey{}) && (err != nil || again != d) {
			t.Fatalf("%+v reads back as %+v, %v", d, again, err)
		}
		got, err := PublicKeys(n)
		if err != nil && got != nil || len(got) > maxKeys {
			t.Fatalf("%d keys, %v", len(got), err)
		}
		for _, k := range got {
			if again, err := desired.ParseWGKey(k.String()); err != nil || again != k {
				t.Fatalf("key %s reads back as %s, %v", k, again, err)
			}
		}
		if m, _ := MAC(n); m[0]&1 != 0 || m == (desired.MAC{}) {
			t.Fatalf("address %s", m)
		}
		for _, backend := range Backends() {
			Plan(input(backend, node("a", "10.244.1.0/24", "192.168.0.1"), n))
		}
	})
}
