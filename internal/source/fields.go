package source

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"

	"github.com/braidnet/braid/internal/model"
)

// converter reads fields and collects what is wrong with them.
type converter struct {
	errs Errors
}

func (c *converter) fail(path, got, want string) {
	c.errs = append(c.errs, &FieldError{path, got, want})
}

// addr reads an address as Kubernetes does: leading zeros of IPv4 are allowed and decimal,
// IPv4-mapped IPv6 is IPv4.
func (c *converter) addr(path, s string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(s))
	if !ok {
		c.fail(path, fmt.Sprintf("is %q", s), "an IPv4 or IPv6 address")
	}
	return a.Unmap(), ok
}

// addrs reads a list of addresses; the bad ones are reported and left out.
func (c *converter) addrs(path string, list []string) []netip.Addr {
	var out []netip.Addr
	for i, s := range list {
		if a, ok := c.addr(fmt.Sprintf("%s[%d]", path, i), s); ok {
			out = append(out, a)
		}
	}
	return out
}

// prefix reads a CIDR, with the same leniency as addr, and clears its host bits.
func (c *converter) prefix(path, s string) (netip.Prefix, bool) {
	_, n, err := netutils.ParseCIDRSloppy(s)
	if err != nil {
		c.fail(path, fmt.Sprintf("is %q", s), "a CIDR such as 10.0.0.0/8 or fd00::/64")
		return netip.Prefix{}, false
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	if a.Is4In6() && bits >= 96 {
		a, bits = a.Unmap(), bits-96
	}
	return netip.PrefixFrom(a, bits).Masked(), true
}

// port reads a port number; optional allows 0 for "none".
func (c *converter) port(path string, p int32, optional bool) uint16 {
	if p < 0 || p > 65535 || p == 0 && !optional {
		c.fail(path, fmt.Sprintf("is %d", p), "a port number from 1 to 65535")
		return 0
	}
	return uint16(p)
}

// protocol reads a transport protocol, TCP when it is not given.
func (c *converter) protocol(path string, p corev1.Protocol) model.Protocol {
	switch p {
	case corev1.ProtocolTCP, "":
		return model.TCP
	case corev1.ProtocolUDP:
		return model.UDP
	case corev1.ProtocolSCTP:
		return model.SCTP
	}
	c.fail(path, fmt.Sprintf("is %q", p), "TCP, UDP or SCTP")
	return 0
}

// choice checks that a field has one of a few values; the empty value stands for the first.
func choice[T ~string](c *converter, path string, got T, values ...T) T {
	if got == "" {
		return values[0]
	}
	names := make([]string, len(values))
	for i, v := range values {
		if got == v {
			return got
		}
		names[i] = string(v)
	}
	last := len(names) - 1
	c.fail(path, fmt.Sprintf("is %q", got), strings.Join(names[:last], ", ")+" or "+names[last])
	return values[0]
}

// value returns what p points to, or def for nil.
func value[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}
