package hostport

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/google/nftables/expr"
)

// Names of the maps and the set.
const (
	mapAddresses = "addresses" // address, protocol, port → pod
	mapPorts     = "ports"     // protocol, port → pod, for every address of the node
	setHairpins  = "hairpins"  // pods that may reach themselves: address twice
)

// Netfilter hooks (include/uapi/linux/netfilter.h), and when our chains have their turn there.
const (
	hookPrerouting  = 0
	hookOutput      = 3
	hookPostrouting = 4

	// beforeConntrack is the priority nft calls raw: packets still have the addresses they came with.
	beforeConntrack = -300
	// Services are translated at -100 and their sources replaced at 100, by us and by others. What one of
	// them has translated is not looked at again, so a host port never takes traffic of a service
	// (CVE-2019-9946).
	afterServices    = -90
	afterMasquerades = 110
)

// Kernel numbers the rules compare with.
const (
	loopbackIndex = 1      // LOOPBACK_IFINDEX, in every network namespace
	ctDNAT        = 1 << 5 // IPS_DST_NAT
	fibLocal      = 2      // RTN_LOCAL
	register0     = 8      // NFT_REG32_00; a concatenated key fills registers from here on
)

// family holds what differs between IPv4 and IPv6.
type family struct {
	nft          desired.NFTFamily
	addr         desired.NFTType
	saddr, daddr uint32 // offsets of the addresses in the network header, bytes
	loopback     netip.Prefix
}

var families = map[desired.NFTFamily]family{
	desired.NFTIPv4: {desired.NFTIPv4, desired.NFTIPv4Addr, 12, 16, netip.MustParsePrefix("127.0.0.0/8")},
	desired.NFTIPv6: {desired.NFTIPv6, desired.NFTIPv6Addr, 8, 24, netip.MustParsePrefix("::1/128")},
}

func (f family) has(a netip.Addr) bool { return a.Is4() == (f.nft == desired.NFTIPv4) }

// table is everything but the elements. Its comment ends in a digest of it, so that the table of another
// version of Braid is recognised.
func (f family) table() desired.NFTTable {
	service := []desired.NFTType{desired.NFTInetProto, desired.NFTInetService}
	pod := []desired.NFTType{f.addr, desired.NFTInetService}
	t := desired.NFTTable{
		Family: f.nft, Name: TableName, Chains: f.chains(),
		Sets: []desired.NFTSet{
			{Name: mapAddresses, Key: append([]desired.NFTType{f.addr}, service...), Value: pod, Comment: "host ports of one address of the node: pod"},
			{Name: mapPorts, Key: service, Value: pod, Comment: "host ports of all addresses of the node: pod"},
			{Name: setHairpins, Key: []desired.NFTType{f.addr, f.addr}, Comment: "pods that may reach themselves by a host port"},
		},
	}
	t.Comment = "Braid host ports, layout " + digest(&t)
	return t
}

func (f family) chains() []desired.NFTChain {
	const ports, enter = "host-ports", "new connections to host ports"
	address, service := f.address(f.daddr), []field{protocol, destinationPort}
	reach := []desired.NFTRule{line(enter, words{&expr.Verdict{Kind: expr.VerdictJump, Chain: ports}})}
	fromLoopback := line("the kernel takes no reply to ::1 from a pod: refuse at once, and clients try 127.0.0.1",
		f.in(f.saddr, f.loopback), verdict(expr.VerdictReturn))
	source := []desired.NFTRule{line("a pod that reaches itself", key(f.address(f.saddr), address), in(setHairpins), translated(), masquerade())}
	local := append([]desired.NFTRule{fromLoopback}, reach...)
	if f.nft == desired.NFTIPv4 {
		local = reach
		source = append(source, line("from a loopback address of this node", notLoopback(expr.MetaKeyOIF), f.in(f.saddr, f.loopback), translated(), masquerade()))
	}
	return []desired.NFTChain{
		{Name: ports, Rules: []desired.NFTRule{
			line("not an address of this node", destinationType(expr.CmpOpNeq), verdict(expr.VerdictReturn)),
			line("port of this address", key(append([]field{address}, service...)...), mapped(mapAddresses), f.translate()),
			line("port of every address", key(service...), mapped(mapPorts), f.translate()),
		}},
		// A pod is to be reached at 127.0.0.1 from its node, so the kernel must take replies to that address
		// from the bridge (route_localnet). Nobody may send there of his own (CVE-2020-8558).
		{Name: "loopback", Hook: &desired.NFTHook{Type: "filter", Hook: hookPrerouting, Priority: beforeConntrack}, Rules: []desired.NFTRule{
			line("from elsewhere to a loopback address", notLoopback(expr.MetaKeyIIF), f.in(f.daddr, f.loopback), verdict(expr.VerdictDrop)),
			line("from elsewhere with a loopback address", notLoopback(expr.MetaKeyIIF), f.in(f.saddr, f.loopback), verdict(expr.VerdictDrop)),
		}},
		{Name: "prerouting", Hook: &desired.NFTHook{Type: "nat", Hook: hookPrerouting, Priority: afterServices}, Rules: reach},
		{Name: "output", Hook: &desired.NFTHook{Type: "nat", Hook: hookOutput, Priority: afterServices}, Rules: local},
		{Name: "postrouting", Hook: &desired.NFTHook{Type: "nat", Hook: hookPostrouting, Priority: afterMasquerades}, Rules: source},
	}
}

// words are a part of a rule.
type words []expr.Any

func line(comment string, parts ...words) desired.NFTRule {
	r := desired.NFTRule{Comment: comment}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	return r
}

// field loads something into registers and says how many bytes it has.
type field func(reg uint32) (expr.Any, uint32)

// key loads fields side by side into registers from the first on.
func key(fields ...field) (w words) {
	reg := uint32(register0)
	for _, f := range fields {
		e, bytes := f(reg)
		w = append(w, e)
		reg += (bytes + 3) / 4
	}
	return w
}

func (f family) address(offset uint32) field {
	return func(reg uint32) (expr.Any, uint32) {
		n := uint32(f.addr.Bytes)
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}, n
	}
}

func protocol(reg uint32) (expr.Any, uint32) {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, 1
}

func destinationPort(reg uint32) (expr.Any, uint32) {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, 2
}

func mapped(set string) words {
	return words{&expr.Lookup{SourceRegister: register0, DestRegister: register0, IsDestRegSet: true, SetName: set}}
}

func in(set string) words { return words{&expr.Lookup{SourceRegister: register0, SetName: set}} }

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func compare(op expr.CmpOp, value []byte) words {
	return words{&expr.Cmp{Op: op, Register: register0, Data: value}}
}

func masked(mask []byte) words {
	return words{&expr.Bitwise{SourceRegister: register0, DestRegister: register0, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}}
}

// in matches packets whose address at an offset is of a prefix, which ends at a byte.
func (f family) in(offset uint32, p netip.Prefix) words {
	w := key(f.address(offset))
	if p.Bits() < p.Addr().BitLen() {
		w = append(w, masked(append([]byte(strings.Repeat("\xff", p.Bits()/8)), make([]byte, (p.Addr().BitLen()-p.Bits())/8)...))...)
	}
	return append(w, compare(expr.CmpOpEq, p.Addr().AsSlice())...)
}

// notLoopback matches packets that come in or go out by another link than loopback.
func notLoopback(side expr.MetaKey) words {
	return append(words{&expr.Meta{Key: side, Register: register0}}, compare(expr.CmpOpNeq, native(loopbackIndex))...)
}

// destinationType compares what the destination is to this node with "an address of its own".
func destinationType(op expr.CmpOp) words {
	return append(words{&expr.Fib{Register: register0, FlagDADDR: true, ResultADDRTYPE: true}}, compare(op, native(fibLocal))...)
}

// translated matches connections whose destination has been replaced.
func translated() words {
	w := append(words{&expr.Ct{Key: expr.CtKeySTATUS, Register: register0}}, masked(native(ctDNAT))...)
	return append(w, compare(expr.CmpOpNeq, native(0))...)
}

func verdict(kind expr.VerdictKind) words { return words{&expr.Verdict{Kind: kind}} }

func (f family) translate() words {
	return words{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.nft), RegAddrMin: register0,
		RegProtoMin: register0 + uint32(f.addr.Bytes)/4, Specified: true,
	}}
}

func masquerade() words { return words{&expr.Masq{FullyRandom: true}} }

func digest(t *desired.NFTTable) string {
	h := sha256.New()
	fmt.Fprintf(h, "%v %+v\n", t.Family, t.Sets)
	for _, c := range t.Chains {
		fmt.Fprintf(h, "chain %s %+v\n", c.Name, c.Hook)
		for _, r := range c.Rules {
			for _, e := range r.Exprs {
				fmt.Fprintf(h, "%T%+v ", e, e)
			}
			fmt.Fprintf(h, "# %s\n", r.Comment)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// damage says how the table in the kernel differs from the one we would make; empty when it does not. The
// comments of rules stand for the rules: the kernel gives expressions back in another form.
func damage(t *desired.NFTTable, have *desired.NFTContents) string {
	switch {
	case have == nil:
		return "it is missing"
	case have.Comment != t.Comment:
		return "its layout is not that of this version"
	}
	for _, s := range t.Sets {
		if !have.Sets[s.Name] {
			return "it has no set " + s.Name
		}
	}
	for _, c := range t.Chains {
		got, ok := have.Rules[c.Name]
		if !ok {
			return "it has no chain " + c.Name
		}
		same := len(got) == len(c.Rules)
		for i := 0; same && i < len(got); i++ {
			same = got[i] == c.Rules[i].Comment
		}
		if !same {
			return "the rules of its chain " + c.Name + " were changed"
		}
	}
	return ""
}
