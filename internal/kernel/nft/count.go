package nft

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/braidnet/braid/internal/desired"
	"golang.org/x/sys/unix"
)

// Count is what an element has counted. Packets are as large as the kernel handles them: what a device put
// together counts as one.
type Count struct {
	Packets uint64
	Bytes   uint64 // of IP packets
}

// Counts reads what the elements of a set with counters have counted, by their keys.
func (c *Conn) Counts(family desired.NFTFamily, table, set string) (map[string]Count, error) {
	out := map[string]Count{}
	var bad error
	filter := []string{unix.NFTA_SET_ELEM_LIST_TABLE: table, unix.NFTA_SET_ELEM_LIST_SET: set}
	err := c.query(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, family, filter, func(a fields) {
		for _, b := range attrs(a.get(unix.NFTA_SET_ELEM_LIST_ELEMENTS), &bad) {
			key, n := decodeCount(b, &bad)
			out[key] = n
		}
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, fmt.Errorf("read the counters of set %s of table %s %s: %w", set, family, table, err)
	}
	return out, nil
}

// RuleCounts reads what the rules of a chain have counted, by their comments; rules that count nothing are left
// out. A chain or table that is not there has no rules.
func (c *Conn) RuleCounts(family desired.NFTFamily, table, chain string) (map[string]Count, error) {
	out := map[string]Count{}
	var bad error
	filter := []string{unix.NFTA_RULE_TABLE: table, unix.NFTA_RULE_CHAIN: chain}
	err := c.query(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, family, filter, func(a fields) {
		if text(a.get(unix.NFTA_RULE_TABLE)) != table || text(a.get(unix.NFTA_RULE_CHAIN)) != chain {
			return
		}
		for _, b := range attrs(a.get(unix.NFTA_RULE_EXPRESSIONS), &bad) {
			if e := fields(b); text(e.get(unix.NFTA_EXPR_NAME)) == "counter" {
				out[comment(commentOfRule, a.get(unix.NFTA_RULE_USERDATA))] = decodeCounter(e.get(unix.NFTA_EXPR_DATA), &bad)
			}
		}
	})
	switch err = cmp.Or(err, bad); {
	case errors.Is(err, unix.ENOENT):
		return out, nil
	case err != nil:
		return nil, fmt.Errorf("read the counters of chain %s of table %s %s: %w", chain, family, table, err)
	}
	return out, nil
}

func decodeCounter(data []byte, bad *error) (n Count) {
	for kind, b := range attrs(data, bad) {
		switch {
		case len(b) != 8:
		case kind == unix.NFTA_COUNTER_PACKETS:
			n.Packets = binary.BigEndian.Uint64(b)
		case kind == unix.NFTA_COUNTER_BYTES:
			n.Bytes = binary.BigEndian.Uint64(b)
		}
	}
	return n
}

func decodeCount(element []byte, bad *error) (key string, n Count) {
	for kind, b := range attrs(element, bad) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			key, _ = decodeData(b, bad)
		case unix.NFTA_SET_ELEM_EXPR:
			for kind, b := range attrs(b, bad) {
				if kind == unix.NFTA_EXPR_DATA {
					n = decodeCounter(b, bad)
				}
			}
		}
	}
	return key, n
}
