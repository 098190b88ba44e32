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
var errChanged = errors.New("changed while it was listed")

// Read lists a table: nil when there is none. It starts again when somebody changes the table
// meanwhile.
func (c *Conn) Read(family desired.NFTFamily, table string) (*desired.NFTContents, error) {
	var err error
	for range 10 {
		var got *desired.NFTContents
		got, err = c.read(family, table)
		if err == nil {
			return got, nil
		}
		if !errors.Is(err, errChanged) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return nil, fmt.Errorf("list table %s %s: %w", family, table, err)
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
	intervals := map[string]bool{}
	err = c.query(unix.NFT_MSG_GETSET, unix.NLM_F_DUMP, family, []string{unix.NFTA_SET_TABLE: table}, func(a fields) {
		if text(a.get(unix.NFTA_SET_TABLE)) == table {
			name := text(a.get(unix.NFTA_SET_NAME))
			got.Sets[name] = true
			intervals[name] = u32(a.get(unix.NFTA_SET_FLAGS))&unix.NFT_SET_INTERVAL != 0
		}
	})
	if err != nil {
		return nil, fmt.Errorf("sets: %w", err)
	}
	for name := range got.Sets {
		elements, err := c.elements(family, table, name, intervals[name])
		if err != nil {
			return nil, fmt.Errorf("elements of %s: %w", name, err)
		}
		got.Elements = append(got.Elements, elements...)
	}
	return got, nil
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
	out := make([]desired.NFTElement, len(marks))
	for i := range marks {
		out[i] = marks[i].NFTElement
	}
	return out, nil
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
			if h.flags&unix.NLM_F_DUMP_INTR != 0 {
				result = errChanged
			}
			switch {
			case h.kind == unix.NLMSG_ERROR, h.kind == unix.NLMSG_DONE:
				done = true
				result = cmp.Or(result, answer(h, payload))
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
