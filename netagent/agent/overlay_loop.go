package agent

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/braidnet/braid/internal/kernel/icmp"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// overlayLoop runs a podNetwork as one of the agent's subsystems.
type overlayLoop struct {
	*podNetwork
	backend string
	mtu     atomic.Int64 // of pods, as of the newest Sync; 0 = not known
	setMTU  int          // setting mtu; 0 = the one that is found
	onMTU   func()       // called when mtu changed
	onOwn   func()       // called when what this node says of itself in its Node may have changed

	paths *paths // nil when they are not looked at

	own  atomic.Pointer[[]netip.Addr]  // where other nodes reach this one, as chosen by settings; nil before it is chosen
	last atomic.Pointer[overlayResult] // of the newest Sync that knew the MTU; nil before
}

func newOverlayLoop(c Config, store *model.Store) (*overlayLoop, error) {
	keys := &keyring{path: filepath.Join(c.StateDir, "wireguard.key"), maxAge: c.KeyAge, settle: keySettle}
	if c.KeyAge > 0 {
		keys.settle = min(keySettle, c.KeyAge/5)
	}
	n, err := newOverlay(overlayConfig{Keys: keys, Memory: filepath.Join(c.RunDir, overlayNodesFile), WireGuard: peer.WireGuard{Port: uint16(c.WireGuardPort)}, Backend: c.Overlay, Node: c.Node, Direct: c.Direct, Select: c.selection(),
		VXLAN: peer.VXLAN{VNI: uint32(c.VNI), Port: uint16(c.Port), GBP: c.GBP}, UDP: peer.UDP{Port: uint16(c.UDPPort)}}, store, c.Log)
	if err != nil {
		return nil, err
	}
	o := &overlayLoop{podNetwork: n, backend: c.Overlay, setMTU: c.MTU, onMTU: func() {}, onOwn: func() {}}
	if c.PathChecks {
		o.paths = newPaths(n.echo, c.Log)
	}
	return o, nil
}

func (o *overlayLoop) step(ctx context.Context) (reconcile.Outcome, error) {
	res, err := o.Sync(ctx)
	if o.cfg.Backend == "wireguard" && len(res.Changes) > 0 {
		o.onOwn()
	}
	if was := o.own.Load(); res.Own != nil && (was == nil || !slices.Equal(*was, res.Own)) {
		o.own.Store(&res.Own)
		o.onOwn()
	}
	if res.MTU > 0 {
		o.last.Store(&res)
	}
	if res.MTU > 0 && o.mtu.Swap(int64(res.MTU)) != int64(res.MTU) {
		o.onMTU()
	}
	if o.paths != nil && res.Means != nil {
		for i := range res.Probes {
			if o.setMTU > 0 {
				res.Probes[i].Size = min(res.Probes[i].Size, o.setMTU)
			}
		}
		o.paths.set(res.Probes, res.Means)
	}
	out := reconcile.Outcome{Summary: fmt.Sprintf("%s: %d peers, pod MTU %d", o.backend, res.Peers, res.MTU), Changes: res.Changes}
	if o.cfg.Direct {
		out.Summary += fmt.Sprintf(", %d pod CIDRs without a tunnel", res.Direct)
	}
	if o.setMTU > res.MTU && res.MTU > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("setting mtu: pods get %d, and what is larger than %d does not reach other nodes (%s)", o.setMTU, res.MTU, res.MTUWhy))
	}
	if o.wg.main.dev != nil {
		out.Summary += ", WireGuard served by " + o.wg.main.by() + o.wg.replacing()
	}
	for _, n := range res.Notes {
		out.Notes = append(out.Notes, n.String())
	}
	return out, err
}

// echo asks another node for echoes, from the network namespace of the overlay.
func (o *podNetwork) echo(ctx context.Context, to netip.Addr, sizes []int) (got []bool, err error) {
	ask := func() error {
		got, err = icmp.Echo(ctx, to, sizes, echoWait)
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if o.ns.Here() {
		err = ask()
	} else {
		err = o.ns.Do(ask)
	}
	return got, err
}

// cleanupLinks removes the overlay's devices and routes, and the pod bridge with the pods' interfaces.
func cleanupLinks(c Config) (removed []string, err error) {
	n, err := newOverlay(overlayConfig{}, model.NewStore(), c.Log)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	removed, err = n.Cleanup()
	if err != nil {
		return removed, err
	}
	pods, err := link.RemovePodLinks(n.h)
	return append(removed, pods...), err
}
