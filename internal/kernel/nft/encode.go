package nft

import (
	"fmt"

	"github.com/braidnet/braid/internal/desired"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Numbers of include/uapi/linux/netfilter/nf_tables.h that x/sys does not have.
const (
	nftaTableUserdata = 6
	nftaSetExpr       = 17
	nftTableOwned     = 2 | 4 // NFT_TABLE_F_OWNER, NFT_TABLE_F_PERSIST
	nfnlBatchGenID    = 1     // include/uapi/linux/netfilter/nfnetlink.h
	nftDataVerdict    = 0xffffff00
	nfAccept          = 1 // include/uapi/linux/netfilter.h
)

// listLimit bounds the element list of one message: it is one attribute, whose length has 16 bits.
const listLimit = maxAttr - 2048

// message remembers which operations a netlink message carries, to name them when it is refused.
type message struct {
	seq        uint32
	ops        []desired.NFTOp
	where      string // the part of the operation, such as a rule
	set, chain string // what it is about
}

func (m message) String() string {
	s := m.ops[0].String()
	if len(m.ops) > 1 {
		s = fmt.Sprintf("%s and %d more", s, len(m.ops)-1)
	}
	if m.where != "" {
		s += ": " + m.where
	}
	return s
}

// transaction encodes operations as one nfnetlink batch, which the kernel commits whole or not at
// all.
type transaction struct {
	buf      buffer
	seq      uint32
	last     int // offset of the newest message
	setID    uint32
	messages []message
	err      error
}

// newTransaction starts a batch; seq numbers its messages upwards. With a generation other than 0
// the kernel refuses the batch when the ruleset has another by then.
func newTransaction(seq, generation uint32) *transaction {
	t := &transaction{seq: seq}
	m := t.buf.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, seq, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	if generation != 0 {
		t.buf.u32(nfnlBatchGenID, generation)
	}
	t.buf.end(m)
	return t
}

// finish asks for an answer to the last message (that answer comes after the commit, and errors of
// other messages come unasked) and ends the batch. An unfinished batch is checked by the kernel
// and thrown away.
func (t *transaction) finish(commit bool) {
	t.buf[t.last+6] |= unix.NLM_F_ACK
	if commit {
		t.seq++
		t.buf.end(t.buf.begin(unix.NFNL_MSG_BATCH_END, 0, t.seq, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	}
}

// message starts a message for ops; the caller ends it.
func (t *transaction) message(kind, flags uint16, ops []desired.NFTOp, where string) int {
	t.seq++
	t.last = t.buf.begin(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, t.seq, uint8(ops[0].Family), 0)
	t.messages = append(t.messages, message{seq: t.seq, ops: ops, where: where})
	return t.last
}

// about notes what the newest message is about.
func (t *transaction) about(set, chain string) {
	m := &t.messages[len(t.messages)-1]
	m.set, m.chain = set, chain
}

// add encodes the first of ops, or several of them when they are elements that fit one message,
// and returns how many it took.
func (t *transaction) add(ops []desired.NFTOp) int {
	one := ops[:1]
	switch op := ops[0]; op.Verb {
	case desired.NFTAddTable:
		t.table(one)
	case desired.NFTOwnTable:
		m := t.message(unix.NFT_MSG_NEWTABLE, 0, one, "")
		t.buf.string(unix.NFTA_TABLE_NAME, op.Table)
		t.buf.u32(unix.NFTA_TABLE_FLAGS, nftTableOwned)
		t.buf.end(m)
	case desired.NFTDeleteTable:
		m := t.message(unix.NFT_MSG_DELTABLE, 0, one, "")
		t.buf.string(unix.NFTA_TABLE_NAME, op.Table)
		t.buf.end(m)
	case desired.NFTAddChain:
		t.chain(one, op.Chain)
		t.rules(one, op.Chain)
	case desired.NFTDeleteChain:
		m := t.message(unix.NFT_MSG_DELCHAIN, 0, one, "")
		t.about("", op.Chain.Name)
		t.buf.string(unix.NFTA_CHAIN_TABLE, op.Table)
		t.buf.string(unix.NFTA_CHAIN_NAME, op.Chain.Name)
		t.buf.end(m)
	case desired.NFTFlushChain:
		m := t.message(unix.NFT_MSG_DELRULE, 0, one, "")
		t.about("", op.Chain.Name)
		t.buf.string(unix.NFTA_RULE_TABLE, op.Table)
		t.buf.string(unix.NFTA_RULE_CHAIN, op.Chain.Name)
		t.buf.end(m)
	case desired.NFTAddSet:
		t.set(one, op.Set)
	case desired.NFTDeleteSet:
		m := t.message(unix.NFT_MSG_DELSET, 0, one, "")
		t.about(op.Set.Name, "")
		t.buf.string(unix.NFTA_SET_TABLE, op.Table)
		t.buf.string(unix.NFTA_SET_NAME, op.Set.Name)
		t.buf.end(m)
	case desired.NFTAddElement:
		return t.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, ops)
	case desired.NFTExpireElement: // of an element that is there already only the timeout is new
		return t.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, ops)
	case desired.NFTDeleteElement:
		return t.elements(unix.NFT_MSG_DELSETELEM, 0, ops)
	}
	return 1
}

// table adds the table, then everything rules may refer to, then the rules.
func (t *transaction) table(op []desired.NFTOp) {
	def := op[0].Def
	m := t.message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, op, "")
	t.buf.string(unix.NFTA_TABLE_NAME, def.Name)
	flags := uint32(0)
	if def.Owned {
		flags = nftTableOwned
	}
	t.buf.u32(unix.NFTA_TABLE_FLAGS, flags)
	if def.Comment != "" {
		t.buf.bytes(nftaTableUserdata, udata(commentOfTable, def.Comment))
	}
	t.buf.end(m)
	for i := range def.Sets {
		t.set(op, &def.Sets[i])
	}
	for i := range def.Chains {
		t.chain(op, &def.Chains[i])
	}
	for i := range def.Chains {
		t.rules(op, &def.Chains[i])
	}
}

func (t *transaction) set(op []desired.NFTOp, s *desired.NFTSet) {
	t.setID++
	m := t.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, op, "set "+s.Name)
	t.about(s.Name, "")
	var flags uint32
	if s.Interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if len(s.Value) > 0 {
		flags |= unix.NFT_SET_MAP
	}
	if s.Dynamic > 0 {
		flags |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	}
	if s.Expiring {
		flags |= unix.NFT_SET_TIMEOUT
	}
	t.buf.string(unix.NFTA_SET_TABLE, op[0].Table)
	t.buf.string(unix.NFTA_SET_NAME, s.Name)
	t.buf.u32(unix.NFTA_SET_FLAGS, flags)
	t.buf.u32(unix.NFTA_SET_ID, t.setID)
	magic, bytes := concat(s.Key)
	t.buf.u32(unix.NFTA_SET_KEY_TYPE, magic)
	t.buf.u32(unix.NFTA_SET_KEY_LEN, bytes)
	switch magic, bytes = concat(s.Value); {
	case len(s.Value) == 0:
	case s.Value[0] == desired.NFTVerdict:
		t.buf.u32(unix.NFTA_SET_DATA_TYPE, nftDataVerdict)
	default:
		t.buf.u32(unix.NFTA_SET_DATA_TYPE, magic)
		t.buf.u32(unix.NFTA_SET_DATA_LEN, bytes)
	}
	if s.Dynamic > 0 {
		n := t.buf.nest(unix.NFTA_SET_DESC)
		t.buf.u32(unix.NFTA_SET_DESC_SIZE, uint32(s.Dynamic))
		t.buf.close(n)
	}
	if s.Counter {
		n := t.buf.nest(nftaSetExpr) // which elements inherit
		b, err := expr.Marshal(uint8(op[0].Family), &expr.Counter{})
		if err != nil && t.err == nil {
			t.err = fmt.Errorf("encode the counter of set %s: %w", s.Name, err)
		}
		t.buf = append(t.buf, b...)
		t.buf.close(n)
	}
	data := ""
	if len(s.Key) == 1 && (s.Key[0] == desired.NFTMark || s.Key[0] == desired.NFTIfName) {
		data = hostByteOrder // without it `nft` prints such keys wrongly
	}
	if s.Comment != "" {
		data += udata(commentOfSet, s.Comment)
	}
	if data != "" {
		t.buf.bytes(unix.NFTA_SET_USERDATA, data)
	}
	t.buf.end(m)
}

// concat gives the type number and the length of a key or value: a single type has its own length,
// the fields of a concatenation are padded to registers of four bytes.
func concat(types []desired.NFTType) (magic, bytes uint32) {
	if len(types) == 1 {
		return types[0].Magic, uint32(types[0].Bytes)
	}
	for _, t := range types {
		magic = magic<<6 | t.Magic
		bytes += uint32(t.Bytes+3) &^ 3
	}
	return magic, bytes
}

func (t *transaction) chain(op []desired.NFTOp, c *desired.NFTChain) {
	m := t.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, op, "chain "+c.Name)
	t.about("", c.Name)
	t.buf.string(unix.NFTA_CHAIN_TABLE, op[0].Table)
	t.buf.string(unix.NFTA_CHAIN_NAME, c.Name)
	if h := c.Hook; h != nil {
		n := t.buf.nest(unix.NFTA_CHAIN_HOOK)
		t.buf.u32(unix.NFTA_HOOK_HOOKNUM, h.Hook)
		t.buf.u32(unix.NFTA_HOOK_PRIORITY, uint32(h.Priority))
		t.buf.close(n)
		t.buf.u32(unix.NFTA_CHAIN_POLICY, nfAccept)
		t.buf.string(unix.NFTA_CHAIN_TYPE, h.Type)
	}
	t.buf.end(m)
}

func (t *transaction) rules(op []desired.NFTOp, c *desired.NFTChain) {
	for i := range c.Rules {
		r := &c.Rules[i]
		m := t.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, op,
			fmt.Sprintf("rule %d of chain %s (%s)", i+1, c.Name, r.Comment))
		t.about("", c.Name)
		t.buf.string(unix.NFTA_RULE_TABLE, op[0].Table)
		t.buf.string(unix.NFTA_RULE_CHAIN, c.Name)
		list := t.buf.nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range r.Exprs {
			n := t.buf.nest(unix.NFTA_LIST_ELEM)
			if err := t.expr(op[0].Family, e); err != nil && t.err == nil {
				t.err = fmt.Errorf("encode %T in rule %d of chain %s: %w", e, i+1, c.Name, err)
			}
			t.buf.close(n)
		}
		t.buf.close(list)
		if r.Comment != "" {
			t.buf.bytes(unix.NFTA_RULE_USERDATA, udata(commentOfRule, r.Comment))
		}
		t.buf.end(m)
	}
}

func (t *transaction) expr(f desired.NFTFamily, e expr.Any) error {
	if ct, ok := e.(*expr.Ct); ok && (ct.Key == desired.CtDestinationIPv4 || ct.Key == desired.CtDestinationIPv6) {
		// The library knows neither the keys nor that they need a direction.
		t.buf.string(unix.NFTA_EXPR_NAME, "ct")
		n := t.buf.nest(unix.NFTA_EXPR_DATA)
		t.buf.u32(unix.NFTA_CT_KEY, uint32(ct.Key))
		t.buf.u32(unix.NFTA_CT_DREG, ct.Register)
		t.buf.bytes(unix.NFTA_CT_DIRECTION, string([]byte{byte(ct.Direction)}))
		t.buf.close(n)
		return nil
	}
	b, err := expr.Marshal(uint8(f), e)
	t.buf = append(t.buf, b...)
	return err
}

// elements encodes the leading operations of ops that do the same to the same set.
func (t *transaction) elements(kind, flags uint16, ops []desired.NFTOp) int {
	first, n := ops[0], 0
	at := t.message(kind, flags, ops, "")
	t.about(first.Element.Set, "")
	t.buf.string(unix.NFTA_SET_ELEM_LIST_TABLE, first.Table)
	t.buf.string(unix.NFTA_SET_ELEM_LIST_SET, first.Element.Set)
	list := t.buf.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for ; n < len(ops) && len(t.buf)-list < listLimit; n++ {
		op := &ops[n]
		if op.Verb != first.Verb || op.Family != first.Family || op.Table != first.Table || op.Element.Set != first.Element.Set {
			break
		}
		t.element(op.Element, op.Verb)
	}
	t.buf.close(list)
	t.buf.end(at)
	t.messages[len(t.messages)-1].ops = ops[:n]
	return n
}

func (t *transaction) element(e *desired.NFTElement, verb desired.NFTVerb) {
	full := verb != desired.NFTDeleteElement
	n := t.buf.nest(unix.NFTA_LIST_ELEM)
	t.data(unix.NFTA_SET_ELEM_KEY, e.Key)
	switch {
	case full && e.Goto != "":
		d := t.buf.nest(unix.NFTA_SET_ELEM_DATA)
		v := t.buf.nest(unix.NFTA_DATA_VERDICT)
		code := int32(unix.NFT_GOTO)
		t.buf.u32(unix.NFTA_VERDICT_CODE, uint32(code))
		t.buf.string(unix.NFTA_VERDICT_CHAIN, e.Goto)
		t.buf.close(v)
		t.buf.close(d)
	case full && e.Value != "":
		t.data(unix.NFTA_SET_ELEM_DATA, e.Value)
	}
	if verb == desired.NFTExpireElement {
		t.buf.u64(unix.NFTA_SET_ELEM_TIMEOUT, uint64(expireAfter.Milliseconds()))
	}
	if full && e.Comment != "" {
		t.buf.bytes(unix.NFTA_SET_ELEM_USERDATA, udata(commentOfElement, e.Comment))
	}
	t.buf.close(n)
	if e.End != "" { // ranges are two elements: the first key, and an end mark on the key behind the last
		n := t.buf.nest(unix.NFTA_LIST_ELEM)
		t.data(unix.NFTA_SET_ELEM_KEY, e.End)
		t.buf.u32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		t.buf.close(n)
	}
}

func (t *transaction) data(kind uint16, value string) {
	n := t.buf.nest(kind)
	t.buf.bytes(unix.NFTA_DATA_VALUE, value)
	t.buf.close(n)
}
