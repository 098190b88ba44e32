package agent

import (
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/wg"
	"github.com/braidnet/braid/netagent/overlay"
	"github.com/braidnet/braid/netagent/overlay/peer"
	"github.com/braidnet/braid/netagent/overlay/wireguard"
)

// calm is how long nothing may have come by a session, or been sent by it, until it is taken for unused: longer than a
// packet is under way.
const calm = 2 * time.Second

// fresh is how old a session of a detour has to be until data are sent by it. Both ends may have begun one at the same time,
// and the second pushes the first out, with what is under way.
const fresh = 500 * time.Millisecond

// keyChange is what is seen of keys that are being replaced, from one Sync to the next. An agent that starts begins anew, and
// waits until it has seen enough.
type keyChange struct {
	main, detour map[desired.WGKey]wg.Heard // of the devices, by the peers' keys
	counts       map[desired.WGKey]count
	met          map[desired.WGKey]time.Time // since when there is a session with the key of a detour
	left         map[string]time.Time        // since when a node is sent to by the detour
	keyed        time.Time                   // when the first device was given its key; zero: before this agent
	late         []string                    // whom a phase waits for
	phases       string                      // of the other nodes
	phased       time.Time                   // since when
}

// count is how many bytes came from a key, and since when that is so.
type count struct {
	bytes int64
	since time.Time
}

// look reads the devices, as far as there are any.
func (c *keyChange) look(now time.Time, main, detour *wg.Device) {
	read := func(d *wg.Device) (m map[desired.WGKey]wg.Heard) {
		if d != nil {
			m, _ = d.Heard() // what keeps it from being read shows when it is written
		}
		return m
	}
	c.main, c.detour = read(main), read(detour)
	counts := map[desired.WGKey]count{}
	for _, m := range []map[desired.WGKey]wg.Heard{c.main, c.detour} {
		for key, heard := range m {
			was, known := c.counts[key]
			if !known || was.bytes != heard.Bytes {
				was = count{heard.Bytes, now}
			}
			counts[key] = was
		}
	}
	c.counts = counts
	met := map[desired.WGKey]time.Time{}
	for key, heard := range c.detour {
		if !heard.Up(now) {
			continue
		}
		if met[key] = c.met[key]; met[key].IsZero() {
			met[key] = now
		}
	}
	c.met = met
}

// up are the keys of detours that may be sent to: the session is not just being made.
func (c *keyChange) up(now time.Time) map[desired.WGKey]bool {
	out := map[desired.WGKey]bool{}
	for key, at := range c.met {
		out[key] = now.Sub(at) >= fresh
	}
	return out
}

// moved takes note of who is sent to by the detour, which is ready or not.
func (c *keyChange) moved(ways []wireguard.Way, ready bool, now time.Time) {
	left := map[string]time.Time{}
	for _, w := range ways {
		if !ready || !w.Moved {
			continue
		}
		if left[w.Node] = c.left[w.Node]; left[w.Node].IsZero() {
			left[w.Node] = now
		}
	}
	c.left = left
}

// waits names the nodes that this node's change of keys has to wait for, as of now.
func (c *keyChange) waits(ways []wireguard.Way, now time.Time) func(peer.Phase, time.Time) []string {
	silent := func(key desired.WGKey) bool {
		n, known := c.counts[key]
		return !known || now.Sub(n.since) >= calm
	}
	c.late = nil
	return func(phase peer.Phase, since time.Time) []string {
		for _, w := range ways {
			ready := true
			switch phase {
			case peer.Leave: // both send by the detour, and nothing is under way any more
				left := c.left[w.Node]
				ready = !left.IsZero() && now.Sub(left) >= calm && silent(w.Key)
			case peer.Away: // there is a session with the new key
				at := c.main[w.Key].Handshake
				ready = at.After(since) && at.After(c.keyed)
			case peer.Return:
				ready = w.Own || silent(w.Detour)
			}
			if !ready {
				c.late = append(c.late, "node "+w.Node)
			}
		}
		return c.late
	}
}

// goesOn reports whether some node has come further with a change of keys of late, so that much is to be done soon.
func (c *keyChange) goesOn(in overlay.Input, now time.Time) bool {
	phases := string(in.WireGuard.Phase)
	for _, n := range in.Peers {
		if d, err := overlay.PublicDetour(n); err == nil && d.Phase != peer.Steady {
			phases += " " + n.Name + " " + overlay.DetourText(d)
		}
	}
	if c.phases != phases {
		c.phases, c.phased = phases, now
	}
	return phases != "" && now.Sub(c.phased) < keyPatience*keySettle
}
