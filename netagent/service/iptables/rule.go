package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// Prefix starts the name of every chain of ours; nothing else in the kernel is touched.
const Prefix = "BRAID-"

// Entry is the chain by which packets get to ours, in each of FrontendTables. It is never empty.
const Entry = chainServices

// Chains that always exist. Names may have 28 characters at most (XT_EXTENSION_MAXNAMELEN less NUL).
const (
	chainServices    = Prefix + "SERVICES"    // entry, in both tables
	chainAddresses   = Prefix + "ADDRESSES"   // root of the dispatch by address, in both tables
	chainNodePorts   = Prefix + "NODEPORTS"   // root of the dispatch by node port, in both tables
	chainClusterIPs  = Prefix + "CLUSTERIPS"  // root of the dispatch by cluster IP, whatever the port
	chainRefuse      = Prefix + "REFUSE"      // for ports of cluster IPs that no service has
	chainLoopback    = Prefix + "LOOPBACK"    // for loopback addresses, where they serve node ports
	chainForward     = Prefix + "FORWARD"     // entry for forwarded packets
	chainInvalid     = Prefix + "INVALID"     // for packets that connection tracking cannot place
	chainPostrouting = Prefix + "POSTROUTING" // entry of masquerading
	chainMasquerade  = Prefix + "MASQUERADE"  // for marked packets
	chainForeign     = Prefix + "FOREIGN"     // marks packets that no pod of this node sent
)

// markMasquerade sets and markClear clears bit 14, the one that this use of packet marks has had
// in Kubernetes since its beginning; the other bits belong to others.
const (
	markMasquerade = "-j MARK --set-xmark 0x4000/0x4000"
	markClear      = "-j MARK --set-xmark 0x0/0x4000"
	marked         = "-m mark --mark 0x4000/0x4000"
	unmarked       = "-m mark ! --mark 0x4000/0x4000"
	masquerade     = "-j MASQUERADE --random-fully"
)

// rule joins the words of a rule, comment makes a match of them.
var rule, comment = xt.Rule, xt.Comment

// label is the comment of every rule that belongs to a frontend.
func label(f *service.Frontend) string { return comment(f.Name() + " " + f.Kind.String()) }

func hashed(prefix string, parts ...any) string {
	sum := sha256.Sum256([]byte(fmt.Sprintln(parts...)))
	return Prefix + prefix + "-" + base32.StdEncoding.EncodeToString(sum[:])[:16]
}

func frontendChain(k service.Key) string { return hashed("F", uint8(k.Kind), k) }
func insideChain(k service.Key) string   { return hashed("I", uint8(k.Kind), k) }
func sourceChain(k service.Key) string   { return hashed("W", uint8(k.Kind), k) }

func backendChain(k service.Key, b service.Backend) string {
	return hashed("B", uint8(k.Kind), k, b.AddrPort)
}

// sessionList names the list of client addresses that stay with a backend. All frontends of a service
// port have the same.
func sessionList(f *service.Frontend, b service.Backend) string {
	return hashed("R", f.SessionName(), b.AddrPort)
}

func protocol(p model.Protocol) string { return strings.ToLower(p.String()) }

// portMatch renders a port range of a protocol.
func portMatch(p model.Protocol, lo, hi uint16) string {
	if lo == hi {
		return fmt.Sprintf("-m %s --dport %d", protocol(p), lo)
	}
	return fmt.Sprintf("-m %s --dport %d:%d", protocol(p), lo, hi)
}

// probability renders a one in n chance as the kernel keeps it: a fraction of 2^31.
func probability(n int) string {
	const whole = 1 << 31
	return fmt.Sprintf("-m statistic --mode random --probability %.11f", math.Round(whole/float64(n))/whole)
}

func source(p netip.Prefix) string      { return addrMatch("-s ", p) }
func destination(p netip.Prefix) string { return addrMatch("-d ", p) }

// addrMatch is empty for all addresses: iptables-save prints nothing then.
func addrMatch(option string, p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return option + p.Masked().String()
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// protocols orders the transport protocols in dispatch keys.
var protocols = []model.Protocol{model.TCP, model.UDP, model.SCTP}

// dispatchKey spells a frontend's key in nibbles: address (none for node ports), protocol, port. ok
// is false for a protocol that has no ports.
func dispatchKey(k service.Key) (key string, ok bool) {
	var b []byte
	if k.Kind != service.NodePort {
		for _, x := range k.Addr.AsSlice() {
			b = append(b, x>>4, x&15)
		}
	}
	for i, p := range protocols {
		if p == k.Protocol {
			b = append(b, byte(i))
			ok = true
		}
	}
	for shift := 12; shift >= 0; shift -= 4 {
		b = append(b, byte(k.Port>>shift)&15)
	}
	return string(b), ok
}

// pathMatch renders what all keys that start with path have in common. addrNibbles is the length of
// the address part: 8, 32, or 0 for node ports.
func pathMatch(path string, addrNibbles int) string {
	n := min(len(path), addrNibbles)
	addr := ""
	if n > 0 {
		raw := make([]byte, addrNibbles/2)
		for i := range n {
			raw[i/2] |= path[i] << (4 * (1 - i%2))
		}
		a, _ := netip.AddrFromSlice(raw)
		addr = destination(netip.PrefixFrom(a, 4*n))
	}
	rest := path[n:]
	if rest == "" {
		return addr
	}
	p := protocols[rest[0]]
	if len(rest) == 1 {
		return rule(addr, "-p "+protocol(p))
	}
	lo, width := 0, 16
	for _, x := range []byte(rest[1:]) {
		width -= 4
		lo |= int(x) << width
	}
	return rule(addr, "-p "+protocol(p), portMatch(p, uint16(lo), uint16(lo+1<<width-1)))
}
