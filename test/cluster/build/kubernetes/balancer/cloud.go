package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cloudprovider "k8s.io/cloud-provider"
)

// cloud is a provider that has nothing but load balancers.
type cloud struct {
	cloudprovider.Interface // never called: only LoadBalancer is offered
	ctx                     context.Context
	mu                      sync.Mutex
	pools                   map[v1.IPFamily]*pool
	clients                 []netip.Addr // by which this network asks
	balancers               map[types.UID]*balancer
}

// balancer is what one Service has: addresses, and the nodes to which they are routed.
type balancer struct {
	addrs   []netip.Addr
	clients []netip.Addr
	health  uint16 // port at which nodes say whether they take traffic; 0 = all do
	sticky  bool   // a client stays with one node
	nodes   []*v1.Node
	stop    context.CancelFunc
	routes  map[netip.Addr][]netip.Addr // as programmed
}

func newCloud(ctx context.Context, pools, clients string) (*cloud, error) {
	c := &cloud{ctx: ctx, pools: map[v1.IPFamily]*pool{}, balancers: map[types.UID]*balancer{}}
	for _, s := range strings.Split(pools, ",") {
		p, err := newPool(s)
		if err != nil {
			return nil, fmt.Errorf("--pools: %w", err)
		}
		family := v1.IPv6Protocol
		if p.prefix.Addr().Is4() {
			family = v1.IPv4Protocol
		}
		c.pools[family] = p
	}
	for _, s := range strings.Split(clients, ",") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("--clients: %w", err)
		}
		c.clients = append(c.clients, a)
	}
	return c, c.prepare()
}

// prepare makes this network one outside the nodes': its own addresses are of no node's subnet, and it forwards
// nothing. So what a node sends back since it has no such service, and what goes to an address that no Service
// has, is lost without a word, as at other load balancers; hence the routes to lo.
func (c *cloud) prepare() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, a := range c.clients {
		if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: host(a)}); err != nil {
			return fmt.Errorf("add the clients' address %s: %w", a, err)
		}
	}
	for _, p := range c.pools {
		dst := &net.IPNet{IP: p.prefix.Addr().AsSlice(), Mask: net.CIDRMask(p.prefix.Bits(), p.prefix.Addr().BitLen())}
		if err := netlink.RouteReplace(&netlink.Route{Dst: dst, LinkIndex: lo.Attrs().Index, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route %s to nobody: %w", dst, err)
		}
	}
	for f, value := range map[string]string{
		"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0",
		// Connections are spread over nodes by ports too.
		"ipv4/fib_multipath_hash_policy": "1", "ipv6/fib_multipath_hash_policy": "1",
	} {
		if err := os.WriteFile("/proc/sys/net/"+f, []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func (c *cloud) ProviderName() string                             { return "machine" }
func (c *cloud) HasClusterID() bool                               { return true }
func (c *cloud) LoadBalancer() (cloudprovider.LoadBalancer, bool) { return c, true }

// GetLoadBalancerName returns a name; nothing here is called by it.
func (c *cloud) GetLoadBalancerName(_ context.Context, _ string, svc *v1.Service) string {
	return cloudprovider.DefaultLoadBalancerName(svc)
}

// GetLoadBalancer returns the addresses of a Service that has some.
func (c *cloud) GetLoadBalancer(_ context.Context, _ string, svc *v1.Service) (*v1.LoadBalancerStatus, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.balancers[svc.UID]
	if b == nil {
		return nil, false, nil
	}
	return b.status(), true, nil
}

func (b *balancer) status() *v1.LoadBalancerStatus {
	s := &v1.LoadBalancerStatus{}
	for _, a := range b.addrs {
		s.Ingress = append(s.Ingress, v1.LoadBalancerIngress{IP: a.String()})
	}
	return s
}

// EnsureLoadBalancer gives a Service an address of each of its families and routes them.
func (c *cloud) EnsureLoadBalancer(_ context.Context, _ string, svc *v1.Service, nodes []*v1.Node) (*v1.LoadBalancerStatus, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.balancers[svc.UID]
	if b == nil {
		b = &balancer{clients: c.clients, routes: map[netip.Addr][]netip.Addr{}}
		for _, f := range svc.Spec.IPFamilies {
			a, err := c.pools[f].take()
			if err != nil {
				return nil, err
			}
			b.addrs = append(b.addrs, a)
		}
		c.balancers[svc.UID] = b
		var ctx context.Context
		ctx, b.stop = context.WithCancel(c.ctx)
		go c.watch(ctx, b)
	}
	c.set(b, svc, nodes)
	return b.status(), b.route(b.healthy())
}

// UpdateLoadBalancer routes to other nodes.
func (c *cloud) UpdateLoadBalancer(_ context.Context, _ string, svc *v1.Service, nodes []*v1.Node) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.balancers[svc.UID]
	if b == nil {
		return fmt.Errorf("service %s/%s has no load balancer", svc.Namespace, svc.Name)
	}
	c.set(b, svc, nodes)
	return b.route(b.healthy())
}

func (c *cloud) set(b *balancer, svc *v1.Service, nodes []*v1.Node) {
	b.nodes, b.health, b.sticky = nodes, 0, svc.Spec.SessionAffinity == v1.ServiceAffinityClientIP
	if svc.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal {
		b.health = uint16(svc.Spec.HealthCheckNodePort)
	}
}

// EnsureLoadBalancerDeleted takes the addresses back.
func (c *cloud) EnsureLoadBalancerDeleted(_ context.Context, _ string, svc *v1.Service) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.balancers[svc.UID]
	if b == nil {
		return nil
	}
	b.stop()
	if err := b.route(nil); err != nil {
		return err
	}
	for _, a := range b.addrs {
		for _, p := range c.pools {
			delete(p.used, a)
		}
	}
	delete(c.balancers, svc.UID)
	return nil
}

// checkInterval is how often nodes are asked whether they take traffic.
const checkInterval = time.Second

func (c *cloud) watch(ctx context.Context, b *balancer) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.mu.Lock()
		if ctx.Err() == nil && b.health != 0 {
			if err := b.route(b.healthy()); err != nil {
				fmt.Println(err)
			}
		}
		c.mu.Unlock()
	}
}

// healthy returns the nodes that take traffic.
func (b *balancer) healthy() []*v1.Node {
	if b.health == 0 {
		return b.nodes
	}
	client := http.Client{Timeout: checkInterval}
	good := make([]bool, len(b.nodes))
	var wg sync.WaitGroup
	for i, n := range b.nodes {
		for _, a := range addresses(n) {
			wg.Go(func() {
				resp, err := client.Get("http://" + net.JoinHostPort(a.String(), strconv.Itoa(int(b.health))) + "/healthz")
				if err == nil {
					resp.Body.Close()
					good[i] = resp.StatusCode == http.StatusOK
				}
			})
			break // the first address stands for the node
		}
	}
	wg.Wait()
	var out []*v1.Node
	for i, n := range b.nodes {
		if good[i] {
			out = append(out, n)
		}
	}
	return out
}

// addresses returns a node's own, the primary one first.
func addresses(n *v1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == v1.NodeInternalIP {
			out = append(out, ip)
		}
	}
	return out
}

// route makes the addresses lead to nodes, or nowhere when there is none.
func (b *balancer) route(nodes []*v1.Node) error {
	want := map[netip.Addr][]netip.Addr{}
	for _, a := range b.addrs {
		for _, n := range nodes {
			for _, via := range addresses(n) {
				if via.Is4() == a.Is4() {
					want[a] = append(want[a], via)
				}
			}
		}
		slices.SortFunc(want[a], netip.Addr.Compare)
		if b.sticky && len(want[a]) > 1 {
			want[a] = want[a][:1] // all ask from one address here, so one node does
		}
	}
	var errs []error
	for _, a := range b.addrs {
		if slices.Equal(want[a], b.routes[a]) {
			continue
		}
		fmt.Printf("%s goes to %v\n", a, want[a])
		errs = append(errs, b.program(a, want[a]))
	}
	b.routes = maps.Clone(want)
	return errors.Join(errs...)
}

// program replaces the route of one address.
func (b *balancer) program(a netip.Addr, via []netip.Addr) error {
	dst := host(a)
	// IPv6 would add to a route where IPv4 replaces it.
	if err := netlink.RouteDel(&netlink.Route{Dst: dst}); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove the route to %s: %w", a, err)
	}
	if len(via) == 0 {
		return nil
	}
	r := &netlink.Route{Dst: dst}
	for _, c := range b.clients {
		if c.Is4() == a.Is4() {
			r.Src = c.AsSlice()
		}
	}
	for _, v := range via {
		r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: v.AsSlice()})
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("route %s via %v: %w", a, via, err)
	}
	return nil
}
