package nft

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"golang.org/x/sys/unix"
)

// errChanged says that something was changed while the kernel listed it.
var errChanged = errors.New("the ruleset changed while it was listed")

// readTries is how often Read lists before it is content with a listing that something changed under.
const readTries = 10

// Read lists a table, without the elements of dynamic sets: nil when there is none. When any table of the namespace changes meanwhile it
// starts again, but not for ever: on a node where others are busy no listing would ever do. What
// such a listing has wrong, the kernel refuses to change, or the next Read sees.
func (c *Conn) Read(family desired.NFTFamily, table string) (*desired.NFTContents, error) {
	for try := 1; ; try++ {
		got, err := c.consistent(family, table)
		if err == nil || errors.Is(err, errChanged) && try == readTries {
			return got, nil
		}
		if !errors.Is(err, errChanged) {
			return nil, fmt.Errorf("list table %s %s: %w", family, table, err)
		}
	}
}

// consistent lists a table and returns errChanged with it when the ruleset changed meanwhile. The
// kernel marks only some interrupted listings itself, and several make up a table.
func (c *Conn) consistent(family desired.NFTFamily, table string) (*desired.NFTContents, error) {
	before, err := c.Generation()
	if err != nil {
		return nil, err
	}
	got, err := c.read(family, table)
	if err != nil {
		return got, err
	}
	after, err := c.Generation()
	if err == nil && before != after {
		err = errChanged
	}
	return got, err
}

// Generation is a number that every change of any table in the namespace raises, whoever makes it and
// also those that iptables makes on top of nftables. Asking costs microseconds.
func (c *Conn) Generation() (id uint32, err error) {
	err = c.query(unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, unix.AF_UNSPEC, nil, func(a fields) { id = u32(a.get(unix.NFTA_GEN_ID)) })
	if err != nil {
		return 0, fmt.Errorf("generation of the ruleset: %w", err)
	}
	return id, nil
}

// Exists reports whether there is a table of that name.
func (c *Conn) Exists(family desired.NFTFamily, table string) (bool, error) {
	_, err := c.head(family, table)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for table %s %s: %w", family, table, err)
	}
	return true, nil
}

// HasRules reports whether there is a chain of that name in the table, with a rule in it.
func (c *Conn) HasRules(family desired.NFTFamily, table, chain string) (has bool, err error) {
	filter := []string{unix.NFTA_RULE_TABLE: table, unix.NFTA_RULE_CHAIN: chain}
	err = c.query(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, family, filter, func(a fields) {
		has = has || text(a.get(unix.NFTA_RULE_TABLE)) == table && text(a.get(unix.NFTA_RULE_CHAIN)) == chain
	})
	if err != nil {
		return false, fmt.Errorf("look for rules in chain %s of table %s %s: %w", chain, family, table, err)
	}
	return has, nil
}

// Keys lists the keys of a set or map of single values.
func (c *Conn) Keys(family desired.NFTFamily, table, set string) (keys []string, err error) {
	for range readTries {
		var list []desired.NFTElement
		if list, err = c.elements(family, table, set, false); errors.Is(err, errChanged) {
			continue
		}
		for _, e := range list {
			keys = append(keys, e.Key)
		}
		break
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of table %s %s: %w", set, family, table, err)
	}
	return keys, nil
}

// Comment reads the comment of a table; an error for which errors.Is(err, unix.ENOENT) holds when there is none.
func (c *Conn) Comment(family desired.NFTFamily, table string) (string, error) {
	words, err := c.head(family, table)
	if err != nil {
		return "", fmt.Errorf("look for table %s %s: %w", family, table, err)
	}
	return words, nil
}

// head reads a table's comment.
func (c *Conn) head(family desired.NFTFamily, table string) (words string, err error) {
	err = c.query(unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, family, []string{unix.NFTA_TABLE_NAME: table}, func(a fields) {
		words = comment(commentOfTable, a.get(nftaTableUserdata))
	})
	return words, err
}

func (c *Conn) read(family desired.NFTFamily, table string) (*desired.NFTContents, error) {
	got := &desired.NFTContents{Rules: map[string][]string{}, Sets: map[string]bool{}}
	var err error
	got.Comment, err = c.head(family, table)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = c.query(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, family, []string{unix.NFTA_CHAIN_TABLE: table}, func(a fields) {
		if text(a.get(unix.NFTA_CHAIN_TABLE)) == table {
			got.Rules[text(a.get(unix.NFTA_CHAIN_NAME))] = nil
		}
	})
	if err != nil {
		return nil, fmt.Errorf("chains: %w", err)
	}
	err = c.query(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, family, []string{unix.NFTA_RULE_TABLE: table}, func(a fields) {
		if text(a.get(unix.NFTA_RULE_TABLE)) == table {
			chain := text(a.get(unix.NFTA_RULE_CHAIN))
			got.Rules[chain] = append(got.Rules[chain], comment(commentOfRule, a.get(unix.NFTA_RULE_USERDATA)))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	flags, err := c.sets(family, table)
	if err != nil {
		return nil, err
	}
	for name := range flags {
		got.Sets[name] = true
	}
	got.Elements, err = c.inSets(family, table, flags)
	return got, err
}

// sets lists the sets of a table, with their flags.
func (c *Conn) sets(family desired.NFTFamily, table string) (map[string]uint32, error) {
	flags := map[string]uint32{}
	err := c.query(unix.NFT_MSG_GETSET, unix.NLM_F_DUMP, family, []string{unix.NFTA_SET_TABLE: table}, func(a fields) {
		if text(a.get(unix.NFTA_SET_TABLE)) == table {
			flags[text(a.get(unix.NFTA_SET_NAME))] = u32(a.get(unix.NFTA_SET_FLAGS))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("sets: %w", err)
	}
	return flags, nil
}

// inSets lists the elements of sets; errChanged with a list that may lack some.
func (c *Conn) inSets(family desired.NFTFamily, table string, sets map[string]uint32) (all []desired.NFTElement, changed error) {
	for name, flags := range sets {
		if flags&unix.NFT_SET_EVAL != 0 {
			continue // its elements are the packets' business, and may be very many
		}
		elements, err := c.elements(family, table, name, flags&unix.NFT_SET_INTERVAL != 0)
		if err != nil && !errors.Is(err, errChanged) {
			return nil, fmt.Errorf("elements of %s: %w", name, err)
		}
		changed = cmp.Or(changed, err)
		all = append(all, elements...)
	}
	return all, changed
}

// mark is an element as the kernel lists it: of interval sets the start or the end of a range.
type mark struct {
	desired.NFTElement
	end bool
}

func (c *Conn) elements(family desired.NFTFamily, table, set string, interval bool) ([]desired.NFTElement, error) {
	var marks []mark
	var bad error
	filter := []string{unix.NFTA_SET_ELEM_LIST_TABLE: table, unix.NFTA_SET_ELEM_LIST_SET: set}
	err := c.query(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, family, filter, func(a fields) {
		for _, b := range attrs(a.get(unix.NFTA_SET_ELEM_LIST_ELEMENTS), &bad) {
			marks = append(marks, decodeElement(set, b, &bad))
		}
	})
	if err = cmp.Or(err, bad); err != nil {
		return nil, err
	}
	if interval {
		return ranges(marks), nil
	}
	return distinct(marks)
}

// distinct drops elements that were listed twice, with errChanged if there were any. A long listing
// comes in parts, and the kernel finds the next part by counting; when it rebuilds the hash table in
// between, as it does for a while after many elements were added, some come again and as many are
// missed.
func distinct(marks []mark) (out []desired.NFTElement, err error) {
	out = make([]desired.NFTElement, 0, len(marks))
	seen := make(map[string]bool, len(marks))
	for i := range marks {
		k := marks[i].Key
		if seen[k] {
			err = errChanged
			continue
		}
		seen[k] = true
		out = append(out, marks[i].NFTElement)
	}
	return out, err
}

func decodeElement(set string, b []byte, bad *error) mark {
	m := mark{NFTElement: desired.NFTElement{Set: set}}
	for kind, b := range attrs(b, bad) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			m.Key, _ = decodeData(b, bad)
		case unix.NFTA_SET_ELEM_DATA:
			m.Value, m.Goto = decodeData(b, bad)
		case unix.NFTA_SET_ELEM_FLAGS:
			m.end = u32(b)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_USERDATA:
			m.Comment = comment(commentOfElement, b)
		}
	}
	return m
}

func decodeData(b []byte, bad *error) (value, chain string) {
	for kind, b := range attrs(b, bad) {
		switch kind {
		case unix.NFTA_DATA_VALUE:
			value = string(b)
		case unix.NFTA_DATA_VERDICT:
			for kind, b := range attrs(b, bad) {
				if kind == unix.NFTA_VERDICT_CHAIN {
					chain = text(b)
				}
			}
		}
	}
	return value, chain
}

// ranges pairs the starts and ends of an interval set, which the kernel lists in no useful order.
// At one key an end comes before a start: the ranges touch.
func ranges(marks []mark) (out []desired.NFTElement) {
	slices.SortFunc(marks, func(a, b mark) int {
		if c := cmp.Compare(a.Key, b.Key); c != 0 || a.end == b.end {
			return c
		}
		if a.end {
			return -1
		}
		return 1
	})
	for _, m := range marks {
		switch last := len(out) - 1; {
		case !m.end:
			out = append(out, m.NFTElement)
		case last >= 0 && out[last].End == "":
			out[last].End = m.Key
		}
	}
	return out
}

// fields are the attributes of one answer.
type fields []byte

// get returns the payload of the first attribute of a kind, nil when there is none.
func (f fields) get(kind uint16) []byte {
	var bad error
	for k, b := range attrs(f, &bad) {
		if k == kind {
			return b
		}
	}
	return nil
}

// query sends one request, with the string attributes filter (indexed by their type), and hands the
// attributes of every answer to fn.
func (c *Conn) query(kind, flags uint16, family desired.NFTFamily, filter []string, fn func(fields)) error {
	if err := c.drain(func(header, []byte) {}); err != nil {
		return err
	}
	var b buffer
	seq := c.next()
	m := b.begin(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, seq, uint8(family), 0)
	for k, s := range filter {
		if s != "" {
			b.string(uint16(k), s)
		}
	}
	b.end(m)
	if err := c.reserve(len(b)); err != nil {
		return err
	}
	if err := c.transmit(b); err != nil {
		return fmt.Errorf("ask netfilter: %w", err)
	}
	var result error
	for done := false; !done; {
		err := c.receive(0, func(h header, payload []byte) {
			if h.seq != seq {
				return
			}
			switch {
			case h.kind == unix.NLMSG_ERROR, h.kind == unix.NLMSG_DONE:
				done = true
				result = answer(h, payload)
			case len(payload) >= genHeader:
				fn(fields(payload[genHeader:]))
			}
		})
		if err != nil {
			return err
		}
	}
	return result
}
