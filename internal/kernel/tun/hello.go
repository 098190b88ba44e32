package tun

import (
	"bytes"
	"sync/atomic"
	"time"
)

// greeting is a datagram that says that its sender takes packets whose TCP or UDP checksum is partial, the sum
// of the pseudo-header only, as within one machine. The checksum of the datagram that such a packet travels
// in, which network cards compute, protects it on the way. That saves two passes over all data.
//
// A node greets those that it sends to once in a while, and sends partial checksums only to those that have
// greeted of late. So flannel's nodes never get any, and a node that becomes one gets none soon after. What
// flannel makes of a greeting is nothing: the kernel takes no packet of IP version 0, and 20 bytes are enough
// for flannel to look at.
var greeting = []byte("\x00braid takes partial")

const (
	greetEvery = time.Second
	trustFor   = 3 * time.Second
)

// hello is when a node was greeted, and when it has greeted, in ns of the clock.
type hello struct{ told, heard atomic.Int64 }

// due reports whether it is time to greet, and counts on it being done.
func (h *hello) due(now time.Time) bool {
	last := h.told.Load()
	return now.UnixNano()-last >= int64(greetEvery) && h.told.CompareAndSwap(last, now.UnixNano())
}

func (h *hello) trusted(now time.Time) bool {
	age := now.UnixNano() - h.heard.Load()
	return age >= 0 && age < int64(trustFor)
}

func isGreeting(b []byte) bool { return bytes.HasPrefix(b, greeting) } // later ones may say more
