package tun

import "sync/atomic"

type counters struct {
	sent, sentBytes, received, receivedBytes           atomic.Uint64
	noRoute, unsent, tooBig                            atomic.Uint64
	malformed, stranger, spoofed, misdirected, refused atomic.Uint64
}

// Stats counts packets of pods; what a kernel calls one packet may be many here, as on the wire.
type Stats struct {
	Sent, Received           uint64
	SentBytes, ReceivedBytes uint64 // IP packets; ReceivedBytes also of what was dropped
	Dropped                  map[string]uint64
}

// Stats returns the counters since Open. Dropped has all reasons, also those that never were.
func (p *Path) Stats() Stats {
	c := &p.counters
	return Stats{Sent: c.sent.Load(), SentBytes: c.sentBytes.Load(), Received: c.received.Load(), ReceivedBytes: c.receivedBytes.Load(),
		Dropped: map[string]uint64{
			"no-route":    c.noRoute.Load(),     // no node has the destination
			"not-sent":    c.unsent.Load(),      // the underlay did not take it
			"too-big":     c.tooBig.Load(),      // the way to the node carries less
			"malformed":   c.malformed.Load(),   // no whole IP packet
			"stranger":    c.stranger.Load(),    // datagrams from what is no node, or another port
			"spoofed":     c.spoofed.Load(),     // a source that the sending node does not have
			"misdirected": c.misdirected.Load(), // for no pod of this node
			"refused":     c.refused.Load(),     // by the kernel of this node
		}}
}
