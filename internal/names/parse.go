package names

import (
	"net/netip"
	"strings"
)

// Kind says what sort of name was asked for.
type Kind uint8

// Kinds of names beneath a cluster zone.
const (
	Node    Kind = iota + 1 // exists, but holds no records: the zone's root, "svc", "pod", "dns"
	Version                 // "dns-version", whose TXT record gives the schema
	NSHost                  // "ns.dns", the zone's name server
	Svc                     // [labels.]service.namespace.svc, or namespace.svc
	Pod                     // dashed-address.namespace.pod, or namespace.pod
)

// Name is a parsed name. Port and protocol come without their underscores; empty ones match all.
type Name struct {
	Kind      Kind
	Namespace string
	Object    string // service, or the pod's dashed address; empty for the namespace's own name
	Endpoint  string // one label in front of the object, underscore kept
	Port      string // two labels in front of the object: the first
	Protocol  string // and the second
	Cluster   string // in zones of cluster sets, the second of the two is the endpoint's cluster
	Zone      string // topology zone of a zone-scoped name
	Prefer    bool   // it falls back to all endpoints when its zone has none
	Holder    bool   // "_zone", "pin._zone", "prefer._zone": it only holds zone-scoped names
}

// Grammar says which names a zone has beside those of the specification.
type Grammar struct {
	Clusters bool // of a set of clusters (KEP-1645): endpoint.cluster.service.namespace.svc
	Zonal    bool // topology-zone.pin|prefer._zone.service.namespace.svc
}

// Parse reads a name of the plain grammar.
func Parse(rel string) (Name, bool) { return Grammar{}.Parse(rel) }

// Parse reads a lower-case name relative to its zone, without trailing dot: "" is the zone itself,
// "_http._tcp.web.prod.svc" a port of a service. It reports false for names no cluster can have.
//
// Two labels in front of a service are port and protocol even without underscores, as clients of
// CoreDNS have come to rely on; in zones of cluster sets they need one to be.
func (g Grammar) Parse(rel string) (Name, bool) {
	switch rel {
	case "", "svc", "pod", "dns":
		return Name{Kind: Node}, true
	case "dns-version":
		return Name{Kind: Version}, true
	case "ns.dns":
		return Name{Kind: NSHost}, true
	}
	var n Name
	rest, last := cutLast(rel)
	switch last {
	case "svc":
		n.Kind = Svc
	case "pod":
		n.Kind = Pod
	default:
		return Name{}, false
	}
	rest, n.Namespace = cutLast(rest)
	rest, n.Object = cutLast(rest)
	rest, near := cutLast(rest)
	rest, far := cutLast(rest)
	if g.Zonal && !g.Clusters && n.Kind == Svc && near == zoneLabel {
		return n.zonal(rest, far)
	}
	switch {
	case rest != "":
		return Name{}, false
	case far == "":
		n.Endpoint = near
	case g.Clusters && far[0] != '_' && near[0] != '_':
		n.Endpoint, n.Cluster = far, near
	default:
		n.Port, n.Protocol = strings.TrimPrefix(far, "_"), strings.TrimPrefix(near, "_")
	}
	return n, true
}

// zoneLabel stands between a service and zone-scoped names. Its underscore keeps it apart from every
// host name, and three labels in front of a service were never a name before.
const zoneLabel = "_zone"

// zonal completes a name in front of "_zone": a directive and a topology zone, which may hold dots.
func (n Name) zonal(zone, directive string) (Name, bool) {
	if directive != "" && directive != "pin" && directive != "prefer" {
		return Name{}, false
	}
	n.Zone, n.Prefer, n.Holder = zone, directive == "prefer", zone == ""
	return n, true
}

// cutLast splits the last label off a name in presentation format. A dot behind a backslash is part
// of its label (RFC 1035 section 5.1).
func cutLast(name string) (rest, label string) {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] != '.' {
			continue
		}
		escapes := 0
		for j := i - 1; j >= 0 && name[j] == '\\'; j-- {
			escapes++
		}
		if escapes%2 == 0 {
			return name[:i], name[i+1:]
		}
	}
	return "", name
}

// DashedAddr writes an address as a label: 10-0-0-1, 2001-db8--1. A label must not end in a dash,
// so 2001:db8:: becomes 2001-db8--0.
func DashedAddr(a netip.Addr) string { return string(appendDashed(nil, a)) }

func appendDashed(b []byte, a netip.Addr) []byte {
	from := len(b)
	b = a.AppendTo(b)
	for i, c := range b[from:] {
		if c == '.' || c == ':' {
			b[from+i] = '-'
		}
	}
	if len(b) > from && b[len(b)-1] == '-' {
		b = append(b, '0')
	}
	return b
}

// ParseDashed reads an address written with dashes. Three single dashes make an IPv4 address,
// everything else must be IPv6.
func ParseDashed(label string) (netip.Addr, bool) {
	separator := ":"
	if strings.Count(label, "-") == 3 && !strings.Contains(label, "--") {
		separator = "."
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", separator))
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// ParseReverse reads the address out of a full, lower-case name beneath in-addr.arpa. (RFC 1035
// section 3.5) or ip6.arpa. (RFC 3596 section 2.5). Names of parts of an address are not one.
func ParseReverse(name string) (netip.Addr, bool) {
	if rel, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		return parseReverse4(rel)
	}
	rel, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rel) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		v, ok := nibble(rel[62-2*i])
		if !ok || (i > 0 && rel[63-2*i] != '.') {
			return netip.Addr{}, false
		}
		b[i/2] = b[i/2]<<4 | v
	}
	return netip.AddrFrom16(b), true
}

// parseReverse4 reads four octets, the last first, each as decimal digits without a zero in front.
func parseReverse4(rel string) (netip.Addr, bool) {
	var b [4]byte
	for i := 3; i >= 0; i-- {
		octet, rest, more := strings.Cut(rel, ".")
		if more != (i > 0) || len(octet) == 0 || len(octet) > 3 || (len(octet) > 1 && octet[0] == '0') {
			return netip.Addr{}, false
		}
		n := 0
		for _, c := range []byte(octet) {
			if c < '0' || c > '9' {
				return netip.Addr{}, false
			}
			n = n*10 + int(c-'0')
		}
		if n > 255 {
			return netip.Addr{}, false
		}
		b[i], rel = byte(n), rest
	}
	return netip.AddrFrom4(b), true
}

func nibble(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
