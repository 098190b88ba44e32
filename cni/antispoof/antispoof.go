// Package antispoof keeps pods from sending what is not theirs to send: packets, ARP and neighbour
// advertisements with somebody else's addresses, router advertisements (CVE-2020-10749) and redirects.
//
// It does so where the bridge takes a packet in, before it learns anything from it: nftables table
// `bridge braid-antispoof`, whose chains never change and whose sets have the addresses of each pod.
// Only links in the set of guarded links are looked at, so pods that were there before are let be. Pods without
// a bridge have tables of their own, see RoutedTables.
package antispoof

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the name of the table.
const TableName = "braid-antispoof"

// See tables.Seal.
const layout, routedLayout4, routedLayout6 = "4434b925ee7dae8c", "2dec7712ea0662e9", "f9fe9b34af39dd02"

const (
	setLinks    = "guarded"
	setSources4 = "ipv4-sources"
	setSources6 = "ipv6-sources"
)

// Tables is the table.
var Tables = tables.Lazy(func() []desired.NFTTable { return []desired.NFTTable{table()} })

// Numbers of protocols and messages.
const (
	icmpRedirect       = 5   // RFC 792
	routerAdvert       = 134 // RFC 4861 §4.2
	neighborSolicit    = 135 // §4.3
	neighborAdvert     = 136 // §4.4
	redirect6          = 137 // §4.5
	hookPrerouting     = 0   // NF_BR_PRE_ROUTING
	beforeEverybody    = -300
	etherSource        = 6 // offset in the Ethernet header
	source4, source6   = 12, 8
	arpSender, arpHost = 14, 8 // offsets of sender protocol and hardware address (RFC 826, for Ethernet and IPv4)
	advertTarget       = 8     // offset in the ICMPv6 message
)

func table() desired.NFTTable {
	link := nft.Meta(expr.MetaKeyIIFNAME, 16)
	mac := nft.Payload(expr.PayloadBaseLLHeader, etherSource, 6)
	network := func(offset, bytes uint32) nft.Field {
		return nft.Payload(expr.PayloadBaseNetworkHeader, offset, bytes)
	}
	is := func(ethertype uint16) nft.Words {
		return nft.Is(nft.Meta(expr.MetaKeyPROTOCOL, 2), byte(ethertype>>8), byte(ethertype))
	}
	icmp := func(protocol, kind byte) nft.Words {
		return append(nft.Is(nft.Protocol, protocol), nft.Is(nft.Payload(expr.PayloadBaseTransportHeader, 0, 1), kind)...)
	}
	accept, drop := nft.Verdict(expr.VerdictAccept), nft.Verdict(expr.VerdictDrop)
	target := nft.Payload(expr.PayloadBaseTransportHeader, advertTarget, 16)
	return tables.Seal(desired.NFTTable{
		Family: desired.NFTBridge, Name: TableName,
		Sets: []desired.NFTSet{
			{Name: setLinks, Expiring: true, Key: []desired.NFTType{desired.NFTIfName}, Comment: "host ends of pods' interfaces"},
			{Name: setSources4, Expiring: true, Key: []desired.NFTType{desired.NFTIfName, desired.NFTEtherAddr, desired.NFTIPv4Addr}, Comment: "what each may send from"},
			{Name: setSources6, Expiring: true, Key: []desired.NFTType{desired.NFTIfName, desired.NFTEtherAddr, desired.NFTIPv6Addr}, Comment: "what each may send from"},
		},
		Chains: []desired.NFTChain{
			{Name: "prerouting", Hook: &desired.NFTHook{Type: "filter", Hook: hookPrerouting, Priority: beforeEverybody}, Rules: []desired.NFTRule{
				nft.Rule("packets of pods", nft.Key(link), nft.In(setLinks), nft.Goto("from-pod")),
			}},
			{Name: "from-pod", Rules: []desired.NFTRule{
				nft.Rule("a pod is no router", is(unix.ETH_P_IP), icmp(unix.IPPROTO_ICMP, icmpRedirect), drop),
				nft.Rule("a pod is no DHCP server", is(unix.ETH_P_IP), answers(67, 68), drop),
				nft.Rule("from an address of the pod", is(unix.ETH_P_IP), nft.Key(link, mac, network(source4, 4)), nft.In(setSources4), accept),
				nft.Rule("", is(unix.ETH_P_IPV6), nft.Is(nft.Protocol, unix.IPPROTO_ICMPV6), nft.Jump("icmpv6")),
				nft.Rule("a pod is no DHCP server", is(unix.ETH_P_IPV6), answers(547, 546), drop),
				nft.Rule("from an address of the pod", is(unix.ETH_P_IPV6), nft.Key(link, mac, network(source6, 16)), nft.In(setSources6), accept),
				nft.Rule("ARP for an address of the pod", is(unix.ETH_P_ARP),
					nft.Key(link, mac, network(arpSender, 4)), nft.In(setSources4),
					nft.Key(link, network(arpHost, 6), network(arpSender, 4)), nft.In(setSources4), accept),
				nft.Rule("all else is not for a pod to send", drop),
			}},
			{Name: "icmpv6", Rules: []desired.NFTRule{
				nft.Rule("a pod is no router", icmp(unix.IPPROTO_ICMPV6, routerAdvert), drop),
				nft.Rule("a pod is no router", icmp(unix.IPPROTO_ICMPV6, redirect6), drop),
				nft.Rule("a pod advertises only its own addresses", icmp(unix.IPPROTO_ICMPV6, neighborAdvert), nft.Key(link, mac, target), nft.NotIn(setSources6), drop),
			}},
		},
	}, "anti-spoofing", layout)
}

// answers matches UDP from a port to a port: what a DHCP server tells clients (RFC 2131 §4.1, RFC 8415 §7.2). Relays,
// which ask servers elsewhere, are answered at another port.
func answers(from, to uint16) nft.Words {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	return append(nft.Is(nft.Protocol, unix.IPPROTO_UDP), nft.Is(nft.Payload(expr.PayloadBaseTransportHeader, 0, 4), ports...)...)
}

// Pod is what one interface of a pod may send from.
type Pod struct {
	Owner tables.Owner
	MAC   net.HardwareAddr // of the pod's end, six bytes
	Addrs []netip.Addr
	// Routed pods have no bridge.
	Routed bool
}

// group is the tables that guard the pod.
func (p Pod) group() tables.Group {
	if !p.Routed {
		return Tables
	}
	if _, err := sysctl.Get(sysctl.Forwarding(false)); errors.Is(err, os.ErrNotExist) {
		return func() []desired.NFTTable { return RoutedTables()[:1] } // a kernel without IPv6 has no table for it
	}
	return RoutedTables
}

// elements lists the pod's elements. Besides its addresses it has the link-local one that follows from the
// MAC (RFC 4291, appendix A), and in IPv6 no address at all, as hosts have that are about to take one.
func (p Pod) elements() (out []desired.NFTElement) {
	link := string(append([]byte(p.Owner.Link), make([]byte, 16-len(p.Owner.Link))...))
	add := func(set, key string) {
		out = append(out, desired.NFTElement{Set: set, Key: link + key, Comment: p.Owner.Comment()})
	}
	add(setLinks, "")
	if p.Routed {
		return out
	}
	mac := string(p.MAC) + "\x00\x00"
	six := false
	for _, a := range p.Addrs {
		if a.Is4() {
			add(setSources4, mac+string(a.AsSlice()))
			continue
		}
		six = true
		add(setSources6, mac+string(a.AsSlice()))
	}
	if six {
		add(setSources6, mac+string(LinkLocal(p.MAC).AsSlice()))
		add(setSources6, mac+string(netip.IPv6Unspecified().AsSlice()))
	}
	return out
}

// LinkLocal is the address that an interface with this MAC gives itself: its modified EUI-64.
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// ErrNone says that the kernel has no nftables for bridges.
var ErrNone = errors.New("the kernel has no nftables for bridges (module nft_meta_bridge and its like)")

func (p Pod) want(desired.NFTFamily) []desired.NFTElement { return p.elements() }

// Guard lets the pod's interface send from its addresses only.
func Guard(p Pod) error {
	err := p.group().Put(p.Owner.Link, p.want)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ENOENT) || errors.Is(err, tables.ErrNone) {
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	return err
}

// Groups are all tables that a link may be guarded by. What it has there may be taken away (tables.Take) when the link is
// gone, since nobody guards it any more then.
var Groups = []tables.Group{Tables, RoutedTables}

// Missing says what is not in the kernel of what Guard put there.
func Missing(p Pod) (missing []string, err error) {
	return p.group().Lacks(p.want, "what "+p.Owner.Link+" may send from")
}
