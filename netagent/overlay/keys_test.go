package overlay

import (
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
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
	f.Add(wgKey(2)+" "+wgKey(3), "02:00:00:00:00:01")
	f.Add("\x00", "ff:ff:ff:ff:ff:ff")
	f.Add(strings.Repeat("A", 44)+"=", "")
	f.Fuzz(func(t *testing.T, keys, mac string) {
		n := node("b", "10.244.2.0/24", "192.168.0.2")
		n.Annotations = map[string]string{KeyAnnotation: keys, MACAnnotation: mac}
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
