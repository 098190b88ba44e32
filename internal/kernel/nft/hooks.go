package nft

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/braidnet/braid/internal/desired"
	"golang.org/x/sys/unix"
)

// HookForward is where packets enter a chain that pass through the node: NF_INET_FORWARD.
const HookForward = 2

// nfDrop is NF_DROP (linux/netfilter.h).
const nfDrop = 0

// BaseChain is a chain that the kernel hands packets to.
type BaseChain struct {
	Family      desired.NFTFamily
	Table, Name string
	Hook        uint32 // NF_INET_… number
	Drops       bool   // its policy, which holds for what no rule decides
}

// BaseChains lists those of the families inet, ip and ip6, whoever made them.
func (c *Conn) BaseChains() (out []BaseChain, err error) {
	for _, f := range []desired.NFTFamily{desired.NFTInet, desired.NFTIPv4, desired.NFTIPv6} {
		err := c.query(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, f, nil, func(a fields) {
			if b, ok := baseChain(f, a); ok {
				out = append(out, b)
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list the chains of family %s: %w", f, err)
		}
	}
	return out, nil
}

// BaseChain reads one; it is false when there is no such chain, or it is reached by jumps only.
func (c *Conn) BaseChain(family desired.NFTFamily, table, name string) (b BaseChain, ok bool, err error) {
	filter := []string{unix.NFTA_CHAIN_TABLE: table, unix.NFTA_CHAIN_NAME: name}
	err = c.query(unix.NFT_MSG_GETCHAIN, unix.NLM_F_ACK, family, filter, func(a fields) { b, ok = baseChain(family, a) })
	switch {
	case errors.Is(err, unix.ENOENT):
		return b, false, nil
	case err != nil:
		return b, false, fmt.Errorf("look for chain %s of table %s %s: %w", name, family, table, err)
	}
	return b, ok, nil
}

func baseChain(f desired.NFTFamily, a fields) (b BaseChain, ok bool) {
	hook := fields(a.get(unix.NFTA_CHAIN_HOOK))
	b = BaseChain{Family: f, Table: text(a.get(unix.NFTA_CHAIN_TABLE)), Name: text(a.get(unix.NFTA_CHAIN_NAME)),
		Hook: u32(hook.get(unix.NFTA_HOOK_HOOKNUM)), Drops: u32(a.get(unix.NFTA_CHAIN_POLICY)) == nfDrop}
	return b, len(hook) > 0 && len(a.get(unix.NFTA_CHAIN_POLICY)) > 0
}

// Verdict is how a rule ends.
type Verdict struct {
	Word  string // accept, drop, reject, jump, goto; empty: another way, or not at all
	Chain string // where jump and goto lead
	All   bool   // it is for all packets
}

// Verdicts reads the rules of a chain in order; none where there is no such chain. It knows the rules of iptables, too.
func (c *Conn) Verdicts(family desired.NFTFamily, table, chain string) (out []Verdict, err error) {
	var bad error
	filter := []string{unix.NFTA_RULE_TABLE: table, unix.NFTA_RULE_CHAIN: chain}
	err = c.query(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, family, filter, func(a fields) {
		if text(a.get(unix.NFTA_RULE_TABLE)) != table || text(a.get(unix.NFTA_RULE_CHAIN)) != chain {
			return
		}
		v := Verdict{All: true}
		for _, b := range attrs(a.get(unix.NFTA_RULE_EXPRESSIONS), &bad) {
			v.add(fields(b), &bad)
		}
		out = append(out, v)
	})
	switch err = cmp.Or(err, bad); {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read chain %s of table %s %s: %w", chain, family, table, err)
	}
	return out, nil
}

// add takes one more expression of the rule into account.
func (v *Verdict) add(e fields, bad *error) {
	data := fields(e.get(unix.NFTA_EXPR_DATA))
	switch text(e.get(unix.NFTA_EXPR_NAME)) {
	case "counter", "log":
	case "reject":
		v.Word = "reject"
	case "target": // of iptables
		if text(data.get(unix.NFTA_TARGET_NAME)) == "REJECT" {
			v.Word = "reject"
		}
	case "match":
		v.All = v.All && text(data.get(unix.NFTA_MATCH_NAME)) == "comment"
	case "immediate":
		verdict := fields(fields(data.get(unix.NFTA_IMMEDIATE_DATA)).get(unix.NFTA_DATA_VERDICT))
		for kind, b := range attrs(verdict, bad) {
			switch {
			case kind == unix.NFTA_VERDICT_CODE && len(b) == 4:
				v.Word = verdictWords[int32(binary.BigEndian.Uint32(b))]
			case kind == unix.NFTA_VERDICT_CHAIN:
				v.Chain = text(b)
			}
		}
	default:
		v.All = false
	}
}

var verdictWords = map[int32]string{nfAccept: "accept", nfDrop: "drop", unix.NFT_JUMP: "jump", unix.NFT_GOTO: "goto"}
