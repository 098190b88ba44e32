package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/sysctl"
)

const (
	// settle gathers the burst of events that one act on the machine makes into one kick.
	settle = 20 * time.Millisecond
	// resubscribe is the pause after event sockets failed.
	resubscribe = time.Second
	// eventBuffer is the receive buffer of each event socket, bytes: room for the burst of routes
	// that goes when a device does, in a cluster of thousands of nodes.
	eventBuffer = 4 << 20
	// forwardingEvery is how often the switches of IP forwarding are looked at, of which no event tells, and
	// whether a data path of ours works. Loading the machine's sysctl files again, as upgrades of packages do,
	// switches them off.
	forwardingEvery = time.Second
)

// Watch calls kick when somebody else changed something of ours, or the underlay: a device, an
// address, a route, a neighbour or forwarding entry, a switch of IP forwarding. It returns when ctx ends. Events that say what
// the newest Sync wants, such as those of its own writes, do not kick.
func (o *podNetwork) Watch(ctx context.Context, kick func()) {
	hits := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { settleHits(ctx, hits, kick) })
	wg.Go(func() { o.followForwarding(ctx, hits) })
	defer wg.Wait()
	followAgain(ctx, o.log, "overlay", func() error { return o.follow(ctx, hits) })
}

// followAgain calls follow until ctx ends, again when its subscriptions broke.
func followAgain(ctx context.Context, log *slog.Logger, what string, follow func() error) {
	for ctx.Err() == nil {
		err := follow()
		if ctx.Err() != nil {
			return
		}
		log.Warn(what+": lost the kernel's events: asking for them again", "err", err, "pause", resubscribe)
		select {
		case <-ctx.Done():
		case <-time.After(resubscribe):
		}
	}
}

// settleHits turns hits into kicks, those of one burst into one.
func settleHits(ctx context.Context, hits <-chan struct{}, kick func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hits:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		select { // this kick answers every hit so far
		case <-hits:
		default:
		}
		kick()
	}
}

func hit(hits chan<- struct{}) {
	select {
	case hits <- struct{}{}:
	default:
	}
}

// follow subscribes to the kernel's events and hits for each that contradicts the view, until ctx
// ends or a subscription breaks. It hits once at its start: what changed before it is unknown.
func (o *podNetwork) follow(ctx context.Context, hits chan<- struct{}) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	err := errors.Join(
		subscribe(ctx, cancel, &wg, hits, func(ch chan netlink.LinkUpdate, ns *vnetns.NsHandle, broken func(error)) error {
			return netlink.LinkSubscribeWithOptions(ch, ctx.Done(), netlink.LinkSubscribeOptions{
				Namespace: ns, ErrorCallback: broken, ReceiveBufferSize: eventBuffer, ReceiveBufferForceSize: true})
		}, func(u netlink.LinkUpdate) bool { return o.current().hitLink(u) }, o.ns),
		subscribe(ctx, cancel, &wg, hits, func(ch chan netlink.AddrUpdate, ns *vnetns.NsHandle, broken func(error)) error {
			return netlink.AddrSubscribeWithOptions(ch, ctx.Done(), netlink.AddrSubscribeOptions{
				Namespace: ns, ErrorCallback: broken, ReceiveBufferSize: eventBuffer, ReceiveBufferForceSize: true})
		}, func(u netlink.AddrUpdate) bool { return o.current().hitAddr(u) }, o.ns),
		subscribe(ctx, cancel, &wg, hits, func(ch chan netlink.RouteUpdate, ns *vnetns.NsHandle, broken func(error)) error {
			return netlink.RouteSubscribeWithOptions(ch, ctx.Done(), netlink.RouteSubscribeOptions{
				Namespace: ns, ErrorCallback: broken, ReceiveBufferSize: eventBuffer, ReceiveBufferForceSize: true})
		}, func(u netlink.RouteUpdate) bool { return o.current().hitRoute(u) }, o.ns),
		subscribe(ctx, cancel, &wg, hits, func(ch chan netlink.NeighUpdate, ns *vnetns.NsHandle, broken func(error)) error {
			return netlink.NeighSubscribeWithOptions(ch, ctx.Done(), netlink.NeighSubscribeOptions{
				Namespace: ns, ErrorCallback: broken, ReceiveBufferSize: eventBuffer, ReceiveBufferForceSize: true})
		}, func(u netlink.NeighUpdate) bool { return o.current().hitNeigh(u) }, o.ns),
	)
	if err == nil {
		hit(hits)
		<-ctx.Done()
		err = context.Cause(ctx)
	}
	cancel(err) // ends the subscriptions that did begin
	wg.Wait()
	return err
}

// followForwarding hits when IP forwarding was switched off, or the data path broke, until ctx ends: once until a
// Sync has repaired that, since what cannot be repaired is tried again by the loop.
func (o *podNetwork) followForwarding(ctx context.Context, hits chan<- struct{}) {
	tick := time.NewTicker(forwardingEvery)
	defer tick.Stop()
	was, repaired := false, uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if o.often.Load() {
			hit(hits)
		}
		off := o.forwardingOff() || o.pathBroken()
		if now := o.repaired.Load(); off && (!was || now != repaired) {
			hit(hits)
			repaired = now
		}
		was = off
	}
}

// forwardingOff reports whether a switch that the newest Sync wants on is off.
func (o *podNetwork) forwardingOff() (off bool) {
	look := func() error {
		for _, name := range o.current().forwarding {
			value, err := sysctl.Get(name)
			off = off || err == nil && value != "1"
		}
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if o.ns.Here() {
		_ = look() // never fails
	} else if err := o.ns.Do(look); err != nil {
		o.log.Warn("overlay: look at the switches of IP forwarding", "err", err)
	}
	return off
}

// subscribe opens one subscription and tests its events until its channel closes, which ends follow.
func subscribe[E any](ctx context.Context, cancel context.CancelCauseFunc, wg *sync.WaitGroup, hits chan<- struct{},
	open func(chan E, *vnetns.NsHandle, func(error)) error, contradicts func(E) bool, in *netns.NS) error {
	ch, ns := make(chan E, 256), vnetns.NsHandle(in.Fd())
	runtime.LockOSThread() // Here speaks of one thread: the socket must be made on it
	defer runtime.UnlockOSThread()
	if in.Here() {
		ns = vnetns.None()
	}
	var mu sync.Mutex
	var last error
	err := open(ch, &ns, func(err error) {
		mu.Lock()
		defer mu.Unlock()
		last = err
	})
	if err != nil {
		return fmt.Errorf("subscribe to kernel events: %w", err)
	}
	wg.Go(func() {
		// Reads on after ctx ended until the channel closes: the sender must never block on it.
		for e := range ch {
			if contradicts(e) {
				hit(hits)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		cancel(fmt.Errorf("receive kernel events: %v", last))
	})
	return nil
}
