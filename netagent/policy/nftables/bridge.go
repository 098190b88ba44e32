package nftables

import (
	"net"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// Numbers of protocols inside Ethernet (IANA), and hook and priority of the bridge: where a frame comes in, before
// anybody else looks at it.
const (
	etherIPv4, etherIPv6 = 0x0800, 0x86dd
	hookBridgeIn         = 0
	priorityFirst        = -310
)

// setGateways has the hardware addresses of the node on the pods' bridge.
const setGateways = "gateways"

// Bridge is the table that keeps pods from sending IP to each other past the node's IP stack, where
// policy is: by frames to another pod's hardware address, or to all. An ordinary pod never does that, since its only
// neighbour is the gateway. Without a gateway, while there is no bridge, nothing passes.
func Bridge(o Options, gateway net.HardwareAddr) (desired.NFTTable, []desired.NFTElement) {
	// Pods' links go by their names, since not every kernel can name the bridge of a port (module nft_meta_bridge).
	bridge := nft.LinkPrefix(expr.MetaKeyIIFNAME, o.Links)
	ether := func(kind uint16) nft.Words {
		return nft.Is(nft.Meta(expr.MetaKeyPROTOCOL, 2), binaryutil.BigEndian.PutUint16(kind)...)
	}
	toGateway := append(nft.Key(nft.Payload(expr.PayloadBaseLLHeader, 0, 6)), nft.In(setGateways)...)
	chain := desired.NFTChain{Name: chainFromPods, Hook: &desired.NFTHook{Type: "filter", Hook: hookBridgeIn, Priority: priorityFirst}, Rules: []desired.NFTRule{
		rule("to the node, which knows the policies", bridge, toGateway, nft.Accept()),
		rule("past them", bridge, ether(etherIPv4), nft.Drop()),
	}}
	for _, m := range toNode {
		chain.Rules = append(chain.Rules, rule("neighbours", bridge, ether(etherIPv6), nft.Is(nft.Protocol, icmpv6), nft.Is(nft.MessageType, m), nft.Accept()))
	}
	chain.Rules = append(chain.Rules, rule("past them", bridge, ether(etherIPv6), nft.Drop()))
	t := desired.NFTTable{Family: desired.NFTBridge, Name: TableName, Owned: o.Owned, Chains: []desired.NFTChain{chain},
		Sets: []desired.NFTSet{{Name: setGateways, Key: []desired.NFTType{desired.NFTEtherAddr}, Comment: "of the node on the pods' bridge"}}}
	t.Comment = layout(&t)
	if len(gateway) != 6 {
		return t, nil
	}
	return t, []desired.NFTElement{{Set: setGateways, Key: string(gateway)}}
}

// ReplaceBridge lists what makes the kernel hold the table of Bridge, and says why if it did not.
func ReplaceBridge(o Options, gateway net.HardwareAddr, have *desired.NFTContents) (ops []desired.NFTOp, why string) {
	table, elements := Bridge(o, gateway)
	reason := differs(&table, elements, have)
	if reason == "" {
		return nil, ""
	}
	l := opList{family: desired.NFTBridge}
	if have != nil {
		why = "table bridge " + TableName + ": " + reason
		l.add(desired.NFTOp{Verb: desired.NFTDeleteTable})
	}
	l.add(desired.NFTOp{Verb: desired.NFTAddTable, Def: &table})
	l.elements(desired.NFTAddElement, elements)
	return join(l.list), why
}
