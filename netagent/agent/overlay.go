package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/tun"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// overlayConfig says which overlay a node runs.
type overlayConfig struct {
	Backend string // one of overlay.Backends
	Node    string // this node's name
	Direct  bool   // reach peers on the link by plain routes
	VXLAN   peer.VXLAN
	UDP     peer.UDP
	Select  overlay.Select

	WireGuard     peer.WireGuard
	UserWireGuard bool // serve WireGuard in this process even where the kernel could
	Keys          *keyring
	Memory        string // file of the nodes that the overlay was last made for; empty = none
}

// overlayResult is what one Sync found and did.
type overlayResult struct {
	MTU     int      // of pods, bytes; 0 = not known
	MTUWhy  string   // what it comes from
	Addrs   []string // this node's addresses, each with the device that has it
	AddrWhy string   // what they come from
	Probes  []overlay.Probe
	Means   func(overlay.Probe) string // what has to let a probe through, in words
	Own     []netip.Addr               // where other nodes reach this one, as chosen by settings; nil without these
	Peers   int                        // nodes with at least one pod CIDR reached
	Direct  int                        // pod CIDRs reached without a tunnel
	Changes []string                   // what was done, each with its reason; empty when all was right
	Notes   []overlay.Note             // what cannot be reached, and why
}

// podNetwork keeps devices, addresses, routes, neighbour and forwarding entries of the overlay as
// planned. One goroutine calls Sync; Watch may run beside it.
type podNetwork struct {
	cfg   overlayConfig
	store *model.Store
	log   *slog.Logger
	h     *netlink.Handle
	ns    *netns.NS

	user  userPath                 // of backend udp
	shown atomic.Pointer[tun.Path] // the same, for whoever counts
	wg    wireguardPath            // of backend wireguard
	often atomic.Bool              // Sync has to look soon again, though no event tells: keys are being replaced

	memory   nodeMemory    // of the nodes, for the next agent
	repaired atomic.Uint64 // how many times Sync has left everything as it should be

	mu   sync.Mutex
	view view // what the newest Sync wants and saw, for Watch to compare events with
}

// newOverlay opens netlink sockets in the network namespace of the calling thread; everything but
// the forwarding switches goes through them. Those are files below /proc/sys, which show the
// namespace of whoever opens them, so Sync too must run on a thread in that namespace. Close it after use.
func newOverlay(cfg overlayConfig, store *model.Store, log *slog.Logger) (*podNetwork, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	h, err := link.OpenAt(-1) // the thread is in ns: see NS.Here
	if err != nil {
		return nil, errors.Join(fmt.Errorf("overlay: %w", err), ns.Close())
	}
	return &podNetwork{cfg: cfg, store: store, log: log, h: h, ns: ns, wg: wireguardPath{keys: cfg.Keys}, memory: nodeMemory{file: cfg.Memory}}, nil
}

// Close gives the sockets up, and ends data paths in this process. The kernel stays as it is.
func (o *podNetwork) Close() error {
	o.user.close()
	o.wg.close()
	o.h.Close()
	return o.ns.Close()
}

// Sync makes the kernel hold what the cluster's nodes ask for. It reads what is there, changes only
// what differs, adds before it deletes, and removes what earlier runs and other backends left. What
// fails for one object does not keep the others from being done; the error joins all failures. When
// this node itself is unknown, nothing is touched.
func (o *podNetwork) Sync(ctx context.Context) (overlayResult, error) {
	store := o.known()
	if !store.HasSynced() {
		return overlayResult{}, errors.New("overlay: the cluster's state is not complete yet: nothing was changed")
	}
	table, err := link.ReadTable(o.h)
	if err != nil {
		return overlayResult{}, fmt.Errorf("overlay: %w", err)
	}
	in, why, err := o.input(table, store)
	if err != nil {
		if o.current().table == nil {
			o.remember(view{table: table}) // a device or address that comes is worth a try
		}
		return overlayResult{}, fmt.Errorf("overlay: %w", err)
	}
	net, notes := overlay.Plan(in)
	res := overlayResult{Peers: countPeers(in.Peers, net.Routes), Notes: notes, AddrWhy: why}
	res.MTU, res.MTUWhy = overlay.MTU(in)
	res.Direct = countDirect(net)
	if o.cfg.Select.Given() {
		res.Own = in.Own
	}
	for _, u := range in.Underlays {
		res.Addrs = append(res.Addrs, fmt.Sprintf("%s on %s", u.Addr, u.Dev))
	}
	o.wg.served(&net)
	o.remember(newView(in, net, table))
	for _, n := range notes {
		if n.Blocks {
			return res, fmt.Errorf("overlay: nothing was changed: %s", n)
		}
	}
	w := &writer{h: o.h, ns: o.ns, table: table, failed: map[string]bool{}}
	w.forwarding(in.Self.PodCIDRs)
	if err := o.relay(w, net.Relay); err != nil {
		return res, fmt.Errorf("overlay: %w", err)
	}
	if err := o.serve(w, &net); err != nil {
		return res, fmt.Errorf("overlay: %w", err)
	}
	if err := w.links(net.Links); err != nil {
		return res, fmt.Errorf("overlay: %w", err)
	}
	o.encrypt(w, &net, in)
	w.enableIPv6(net.Addrs)
	o.remember(newView(in, net, w.table)) // devices made anew have new numbers
	w.objects(ctx, net)
	w.sweepLinks(net.Links)
	res.Probes, res.Means = overlay.Probes(in, net), func(p overlay.Probe) string { return overlay.Means(in, p) }
	res.Changes = w.changes
	if n := len(w.changes); n > 0 {
		o.log.Info("overlay changed the kernel", "changes", n, "first", w.changes[0], "errors", len(w.errs))
	}
	if len(w.errs) == 0 {
		o.repaired.Add(1)
	}
	if store == o.store {
		w.errs = append(w.errs, o.memory.keep(store.List(model.KindNode)))
	}
	return res, errors.Join(w.errs...)
}

// Cleanup removes the overlay's routes and devices, with what is on them, and nothing else; IP
// forwarding stays as it is, since others may rely on it. It returns what it removed. Neither the
// cluster's state nor a valid Config.Backend is needed.
func (o *podNetwork) Cleanup() ([]string, error) {
	table, err := link.ReadTable(o.h)
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	w := &writer{h: o.h, table: table, failed: map[string]bool{}}
	o.remember(view{}) // a running Watch has nothing to defend any more
	w.objects(context.Background(), desired.Network{})
	w.sweepLinks(nil)
	return w.changes, errors.Join(w.errs...)
}

// input gathers what the plan depends on: the nodes of the store, and of the machine the addresses that
// carry packets between nodes; why says what those come from.
func (o *podNetwork) input(t *link.Table, store *model.Store) (in overlay.Input, why string, err error) {
	in = overlay.Input{Backend: o.cfg.Backend, Name: o.cfg.Node, Direct: o.cfg.Direct, VXLAN: o.cfg.VXLAN, UDP: o.cfg.UDP, WireGuard: o.cfg.WireGuard}
	for _, obj := range store.List(model.KindNode) {
		if n, ok := obj.(*model.Node); !ok {
			continue
		} else if n.Name == o.cfg.Node {
			in.Self = n
		} else {
			in.Peers = append(in.Peers, n)
		}
	}
	if in.Self == nil {
		return in, "", nil
	}
	if o.cfg.Backend == "wireguard" {
		facts, err := o.wg.facts(o.h, o.ns, t, o.cfg.UserWireGuard)
		if err != nil {
			return in, "", err
		}
		in.WireGuard.Phase, in.WireGuard.Up = facts.Phase, facts.Up
		o.often.Store(o.wg.change.goesOn(in, time.Now()))
	}
	why, err = o.underlays(t, &in)
	return in, why, err
}

// countPeers counts the nodes that a route leads to.
func countPeers(peers []*model.Node, routes []desired.Route) (count int) {
	reached := make(map[netip.Prefix]bool, len(routes))
	for _, r := range routes {
		reached[r.Dst] = true
	}
	for _, p := range peers {
		for _, c := range p.PodCIDRs {
			if reached[c] {
				count++
				break
			}
		}
	}
	return count
}

// countDirect counts the routes that lead through no device of ours.
func countDirect(net desired.Network) (count int) {
	ours := map[string]bool{}
	for _, l := range net.Links {
		ours[l.Name] = true
	}
	for _, r := range net.Routes {
		if !ours[r.Dev] {
			count++
		}
	}
	return count
}
