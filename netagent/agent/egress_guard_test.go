package agent

import (
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/netagent/egress"
)

// TestPodsMakeNoPacketsOfTheOverlay: a packet by which nodes send each other those of their pods is taken at its word, and
// once masqueraded a pod's would come from a node. In the kinds of overlays, what pods send to their own node, to others, by any of
// their addresses, and to the rest of the world; that nothing else is missed by the rules, or hit.
func TestPodsMakeNoPacketsOfTheOverlay(t *testing.T) {
	const tunnel = "up0" // stands for a device of the overlay
	type sent struct {
		protocol uint8
		src, dst string
		port     uint16
		via      string
		drop     map[string]bool // by overlay
	}
	plain := map[string]bool{"vxlan": true}
	udp := map[string]bool{"vxlan": true, "wireguard": true}
	ip := map[string]bool{"ipip": true}
	list := []sent{
		{wire.UDP, "10.244.1.11", "198.51.100.2", 8472, "", udp},      // another node
		{wire.UDP, "10.244.1.11", "192.0.2.1", 8472, "", udp},         // its own
		{wire.UDP, "10.244.1.11", "10.244.1.1", 8472, "", udp},        // the same, as its gateway
		{wire.UDP, "10.244.1.11", "203.0.113.9", 8472, "", plain},     // perhaps an address of a node that nobody knows
		{wire.UDP, "10.244.1.11", "10.244.2.11", 8472, "", nil},       // another pod
		{wire.UDP, "10.244.1.11", "198.51.100.2", 8473, "", nil},      // another port
		{wire.TCP, "10.244.1.11", "198.51.100.2", 8472, "", nil},      // another protocol
		{wire.UDP, "192.0.2.1", "198.51.100.2", 8472, "", nil},        // the node itself, and pods in its network
		{wire.UDP, "198.51.100.2", "192.0.2.1", 8472, "pods0", nil},   // who else is behind a device is known by nobody here
		{wire.UDP, "203.0.113.9", "198.51.100.2", 8472, "", nil},      // what the node routes for others
		{wire.UDP, "10.244.2.11", "192.0.2.1", 8472, tunnel, udp},     // of another node's pod, out of the tunnel
		{wire.UDP, "198.51.100.9", "10.244.1.1", 8472, tunnel, udp},   // of whomever
		{wire.UDP, "10.244.2.11", "10.244.1.11", 8472, tunnel, nil},   // from pod to pod
		{wire.UDP, "fd00:10:244:1::11", "2001:db8::1", 8472, "", udp}, // and IPv6
		{wire.UDP, "fd00:10:244:1::11", "2001:db8:203::9", 8472, "", plain},
		{wire.UDP, "fd00:10:244:1::11", "fd00:10:244:2::11", 8472, "", nil},
		{wire.IPIP, "10.244.1.11", "198.51.100.2", 0, "", ip},
		{wire.SIT, "10.244.1.11", "198.51.100.2", 0, "", ip},
		{wire.IPIP, "10.244.1.11", "192.0.2.1", 0, "", ip},
		{wire.IPIP, "10.244.1.11", "203.0.113.9", 0, "", ip},
		{wire.IPIP, "10.244.1.11", "10.244.2.11", 0, "", nil},
		{wire.IPIP, "10.244.2.11", "192.0.2.1", 0, tunnel, ip},
		{wire.IPIP, "203.0.113.9", "198.51.100.2", 0, "", nil},
	}
	overlays := map[string]egress.Overlay{
		"none":      {},
		"vxlan":     {Links: tunnel, UDPPorts: []uint16{8472}, Tracked: true},
		"wireguard": {Links: tunnel, UDPPorts: []uint16{8471, 8472}, Authentic: true, Tracked: true},
		"ipip":      {Links: tunnel, Protocols: []uint8{wire.IPIP, wire.SIT}, Tracked: true},
	}
	eachEgressPlane(t, func(t *testing.T, construct func(*egress.Rules) (egressPlane, error)) {
		r := newEgressRun(t, construct, egress.Config{Masquerade: true})
		for name, o := range overlays {
			r.cfg.Overlay = o
			r.start()
			r.step()
			for _, s := range list {
				p := r.packet(s.protocol, s.src, s.dst, s.port)
				p.Via = s.via
				got := saw(r.Send(p))
				if s.via == tunnel && o.Links == "" || s.via == "pods0" && name == "none" {
					continue // no tunnel, so nothing that came out of it
				}
				if (got == "nothing") != s.drop[name] {
					t.Errorf("overlay %s: %s → %s port %d protocol %d: the other end sees %s", name, s.src, s.dst, s.port, s.protocol, got)
				}
			}
			if t.Failed() {
				t.Fatalf("rules:\n%s", r.rules())
			}
		}
	})
}

// TestNoServiceLeadsToTheOverlay: whoever may write endpoints of a service could have nodes send, as themselves, what a
// pod may not.
func TestNoServiceLeadsToTheOverlay(t *testing.T) {
	eachEgressPlane(t, func(t *testing.T, construct func(*egress.Rules) (egressPlane, error)) {
		r := newEgressRun(t, construct, egress.Config{Masquerade: true, Overlay: egress.Overlay{Links: "braid.", UDPPorts: []uint16{8472}, Tracked: true}})
		r.Exec(t, "nft", `add table ip service; add chain ip service c { type nat hook prerouting priority -100; };
			add rule ip service c udp dport 53 ip daddr 10.96.0.1 dnat to 198.51.100.2:8472;
			add rule ip service c udp dport 53 ip daddr 10.96.0.2 dnat to 192.0.2.1:8472;
			add rule ip service c udp dport 53 ip daddr 10.96.0.3 dnat to 10.244.2.11:8472;
			add rule ip service c udp dport 53 ip daddr 10.96.0.4 dnat to 198.51.100.2:53`)
		for dst, gone := range map[string]bool{"10.96.0.1": true, "10.96.0.2": true, "10.96.0.3": false, "10.96.0.4": false} {
			for _, src := range []string{"10.244.1.11", "203.0.113.9"} {
				if got := saw(r.Send(r.packet(wire.UDP, src, dst, 53))); (got == "nothing") != gone {
					t.Errorf("%s asks service %s: its backend sees %s\n%s", src, dst, got, r.rules())
				}
			}
		}
	})
}

// TestFragmentsOfTheOverlay: a datagram in pieces is what it is as a whole.
func TestFragmentsOfTheOverlay(t *testing.T) {
	eachEgressPlane(t, func(t *testing.T, construct func(*egress.Rules) (egressPlane, error)) {
		for _, tracked := range []bool{true, false} {
			r := newEgressRun(t, construct, egress.Config{Masquerade: tracked, Overlay: egress.Overlay{UDPPorts: []uint16{8472}, Tracked: tracked}})
			for port, whole := range map[uint16]bool{8472: false, 8473: true} {
				for _, addrs := range [][2]string{{"10.244.1.11", "198.51.100.2"}, {"fd00:10:244:1::11", "2001:db8:203::9"}} {
					k := r.packet(wire.UDP, addrs[0], addrs[1], port)
					k.Pieces = true
					if f := r.Send(k); (f.Sent != nil) != whole {
						t.Errorf("connections tracked: %v; %s → %s port %d in pieces: %+v\n%s", tracked, k.Src, addrs[1], port, f, r.rules())
					}
				}
			}
		}
	})
}
