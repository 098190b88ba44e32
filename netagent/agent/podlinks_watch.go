package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/link"
)

// podLinksView is what the newest step wants, for events to be compared with.
type podLinksView struct {
	spec   podNetworkSpec
	bridge link.Ref // zero: no pod is on it
	pods   map[int]link.PodLink
	addrs  map[netip.Addr]int // of routed pods: the link
}

func newPodLinksView(spec podNetworkSpec, bridge link.Ref, pods []link.PodLink) podLinksView {
	v := podLinksView{spec: spec, bridge: bridge, pods: make(map[int]link.PodLink, len(pods)), addrs: map[netip.Addr]int{}}
	for _, p := range pods {
		v.pods[p.Index] = p
		for _, a := range p.Addrs {
			v.addrs[a] = p.Index
		}
	}
	return v
}

func (p *podLinks) remember(v podLinksView) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.view = v
}

// Watch calls kick when somebody else changed something of the pods' bridge or links, until ctx ends. What the CNI
// plugin does for a new pod is no such thing: its link is marked when all is done.
func (p *podLinks) Watch(ctx context.Context, kick func()) {
	hits := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { settleHits(ctx, hits, kick) })
	defer wg.Wait()
	followAgain(ctx, p.log, "links of pods", func() error { return p.follow(ctx, hits) })
}

// follow hits for each event that contradicts the view, until ctx ends or a subscription breaks; and once at its
// start, since what changed before is unknown.
func (p *podLinks) follow(ctx context.Context, hits chan<- struct{}) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	err := errors.Join(
		subscribe(ctx, cancel, &wg, hits, func(ch chan netlink.LinkUpdate, ns *vnetns.NsHandle, broken func(error)) error {
			return netlink.LinkSubscribeWithOptions(ch, ctx.Done(), netlink.LinkSubscribeOptions{
				Namespace: ns, ErrorCallback: broken, ReceiveBufferSize: eventBuffer, ReceiveBufferForceSize: true})
		}, p.hitLink, p.ns),
		subscribe(ctx, cancel, &wg, hits, func(ch chan netlink.AddrUpdate, ns *vnetns.NsHandle, broken func(error)) error {
			return netlink.AddrSubscribeWithOptions(ch, ctx.Done(), netlink.AddrSubscribeOptions{
				Namespace: ns, ErrorCallback: broken, ReceiveBufferSize: eventBuffer, ReceiveBufferForceSize: true})
		}, p.hitAddr, p.ns),
		subscribe(ctx, cancel, &wg, hits, func(ch chan netlink.RouteUpdate, ns *vnetns.NsHandle, broken func(error)) error {
			return netlink.RouteSubscribeWithOptions(ch, ctx.Done(), netlink.RouteSubscribeOptions{
				Namespace: ns, ErrorCallback: broken, ReceiveBufferSize: eventBuffer, ReceiveBufferForceSize: true})
		}, p.hitRoute, p.ns),
	)
	if err == nil {
		hit(hits)
		<-ctx.Done()
		err = context.Cause(ctx)
	}
	cancel(err)
	wg.Wait()
	return err
}

// hitLink: the bridge is gone or changed, or a pod's link is.
func (p *podLinks) hitLink(u netlink.LinkUpdate) bool {
	if u.Link == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a, gone := u.Attrs(), u.Header.Type == unix.RTM_DELLINK
	if u.Family == unix.AF_BRIDGE {
		known, ok := p.view.pods[a.Index]
		return ok && known.Bridge == link.PodBridge && (gone || a.Protinfo != nil && !a.Protinfo.Hairpin)
	}
	if p.view.bridge.Index != 0 && (a.Name == link.PodBridge || a.Index == p.view.bridge.Index) {
		return gone || a.Index != p.view.bridge.Index || a.Name != link.PodBridge || a.Flags&net.FlagUp == 0 ||
			!slices.Equal(a.HardwareAddr, p.view.bridge.MAC) || p.view.spec.MTU != 0 && a.MTU != p.view.spec.MTU
	}
	if gone {
		delete(p.view.pods, a.Index)
		return false
	}
	pod, ok := link.ReadPodLink(u.Link)
	if !ok {
		return false
	}
	_, known := p.view.pods[pod.Index]
	if p.view.pods != nil && !known {
		p.view.pods[pod.Index] = pod
		for _, a := range pod.Addrs {
			p.view.addrs[a] = pod.Index
		}
	}
	if pod.Bridge == "" {
		return !pod.Up || pod.Master != 0
	}
	if pod.Bridge != link.PodBridge {
		return false
	}
	// The first pod has made the bridge, which no step has seen yet.
	return !pod.Up || p.view.bridge.Index == 0 || pod.Master != p.view.bridge.Index
}

// hitAddr: a gateway's address has gone, from the bridge or a routed pod's link.
func (p *podLinks) hitAddr(u netlink.AddrUpdate) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pod, ok := p.view.pods[u.LinkIndex]; u.NewAddr || u.LinkIndex != p.view.bridge.Index && (!ok || pod.Bridge != "") {
		return false
	}
	return p.view.isGateway(link.Netip(&u.LinkAddress).Addr())
}

func (v podLinksView) isGateway(a netip.Addr) bool {
	return slices.ContainsFunc(v.spec.CIDRs, func(c netip.Prefix) bool { return gateway(c).Addr() == a })
}

// hitRoute: the way to the pods, or to a routed one, has gone or leads elsewhere.
func (p *podLinks) hitRoute(u netlink.RouteUpdate) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if u.Table != unix.RT_TABLE_MAIN || u.Flags&unix.RTM_F_CLONED != 0 {
		return false
	}
	dst, gone := link.Netip(u.Dst), u.Type == unix.RTM_DELROUTE
	if !dst.IsValid() || !dst.IsSingleIP() {
		return gone && slices.Contains(p.view.spec.CIDRs, dst) && (u.LinkIndex == p.view.bridge.Index || u.Route.Type == unix.RTN_UNREACHABLE)
	}
	on, wanted := p.view.addrs[dst.Addr()]
	return wanted && gone == (on == u.LinkIndex)
}
