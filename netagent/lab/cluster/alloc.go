package cluster

import (
	"fmt"
	"hash/fnv"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Node ports are taken from the range that the API server has by default.
const (
	minNodePort = 30000
	maxNodePort = 32767
	// staticNodePorts is the size of the band at the start that only explicit requests use (KEP-3668).
	staticNodePorts = 86
)

// maxStaticIPs bounds the band at the start of a service CIDR that only explicit requests use
// (KEP-3070: a sixteenth of the range, at least 16, at most 256).
const maxStaticIPs = 256

// allocator hands out cluster IPs and node ports. What it picks depends on the name of the service,
// not on the order of requests, so that a playground started again looks the same.
type allocator struct {
	cidrs    []netip.Prefix // of cluster IPs
	balancer []netip.Prefix // of load-balancer addresses; may be empty
	reserved map[netip.Addr]bool
	ips      map[netip.Addr]types.NamespacedName
	ports    map[int32]types.NamespacedName
}

func newAllocator(cidrs []netip.Prefix, reserved []netip.Addr) *allocator {
	a := &allocator{cidrs: cidrs, reserved: map[netip.Addr]bool{},
		ips: map[netip.Addr]types.NamespacedName{}, ports: map[int32]types.NamespacedName{}}
	for _, ip := range reserved {
		a.reserved[ip] = true
	}
	return a
}

// release gives back everything a service holds.
func (a *allocator) release(owner types.NamespacedName) {
	for ip, o := range a.ips {
		if o == owner {
			delete(a.ips, ip)
		}
	}
	for port, o := range a.ports {
		if o == owner {
			delete(a.ports, port)
		}
	}
}

// hold notes what a service that has been given everything uses.
func (a *allocator) hold(s *corev1.Service) {
	owner := keyOf(s)
	for _, text := range s.Spec.ClusterIPs {
		if ip, err := netip.ParseAddr(text); err == nil {
			a.ips[ip] = owner
		}
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		if ip, err := netip.ParseAddr(in.IP); err == nil {
			a.ips[ip] = owner
		}
	}
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			a.ports[p.NodePort] = owner
		}
	}
	if s.Spec.HealthCheckNodePort != 0 {
		a.ports[s.Spec.HealthCheckNodePort] = owner
	}
}

func (a *allocator) cidrOf(family corev1.IPFamily) (netip.Prefix, bool) {
	return rangeOf(a.cidrs, family)
}

// rangeOf returns the range of a family, if there is one.
func rangeOf(ranges []netip.Prefix, family corev1.IPFamily) (netip.Prefix, bool) {
	for _, r := range ranges {
		if familyOf(r.Addr()) == family {
			return r, true
		}
	}
	return netip.Prefix{}, false
}

// checkIP reports why a service may not have the cluster IP it asks for; nil when it may.
func (a *allocator) checkIP(ip netip.Addr, owner types.NamespacedName) error {
	cidr, ok := a.cidrOf(familyOf(ip))
	switch holder, held := a.ips[ip]; {
	case !ok:
		return fmt.Errorf("cluster IP %s is %s, which this playground does not have", ip, familyOf(ip))
	case !cidr.Contains(ip) || ip == cidr.Masked().Addr():
		return fmt.Errorf("cluster IP %s is not usable in %s", ip, cidr)
	case held && holder != owner:
		return fmt.Errorf("cluster IP %s belongs to Service %s already: choose another or leave it out", ip, holder)
	}
	return nil
}

// pickIP finds a free cluster IP.
func (a *allocator) pickIP(family corev1.IPFamily, owner types.NamespacedName) (netip.Addr, error) {
	cidr, ok := a.cidrOf(family)
	if !ok {
		return netip.Addr{}, fmt.Errorf("this playground has no service CIDR of family %s", family)
	}
	return a.pickFrom(cidr, family, owner)
}

func (a *allocator) pickFrom(cidr netip.Prefix, family corev1.IPFamily, owner types.NamespacedName) (netip.Addr, error) {
	// The first address is the network's own and the last of IPv4 its broadcast address. A million
	// addresses are enough of any CIDR, and keep the arithmetic in 32 bits.
	size := uint32(1) << min(20, cidr.Addr().BitLen()-cidr.Bits())
	if size < 4 {
		return netip.Addr{}, fmt.Errorf("the range %s is too small", cidr)
	}
	static := min(max(16, size/16), maxStaticIPs)
	if size <= 2*static {
		static = 1
	}
	dynamic := size - static - 1
	start := hash32(owner.String() + "/" + string(family))
	for i := range dynamic {
		ip := offset(cidr.Masked().Addr(), static+(start%dynamic+i)%dynamic)
		if _, held := a.ips[ip]; !held && !a.reserved[ip] {
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("the range %s is used up: delete services", cidr)
}

// checkPort reports why a service may not have the node port it asks for; nil when it may.
func (a *allocator) checkPort(port int32, owner types.NamespacedName) error {
	if port < minNodePort || port > maxNodePort {
		return fmt.Errorf("node port %d is outside the range %d-%d", port, minNodePort, maxNodePort)
	}
	if holder, held := a.ports[port]; held && holder != owner {
		return fmt.Errorf("node port %d belongs to Service %s already: choose another or leave it out", port, holder)
	}
	return nil
}

// pickPort finds a node port that nobody has and that is not among taken.
func (a *allocator) pickPort(owner types.NamespacedName, salt string, taken map[int32]bool) (int32, error) {
	free := func(p int32) bool {
		_, held := a.ports[p]
		return !held && !taken[p]
	}
	const low, span = minNodePort + staticNodePorts, maxNodePort - minNodePort - staticNodePorts + 1
	start := hash32(owner.String()+"/"+salt) % span
	for i := range uint32(span) {
		if p := int32(low + (start+i)%span); free(p) {
			return p, nil
		}
	}
	for p := int32(minNodePort); p < low; p++ {
		if free(p) {
			return p, nil
		}
	}
	return 0, fmt.Errorf("the node ports %d-%d are used up: delete services", minNodePort, maxNodePort)
}

// offset returns the address n after base.
func offset(base netip.Addr, n uint32) netip.Addr {
	b := base.AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += uint32(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	ip, _ := netip.AddrFromSlice(b)
	return ip
}

func familyOf(ip netip.Addr) corev1.IPFamily {
	if ip.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func hash32(s string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s))
	return h.Sum32()
}
