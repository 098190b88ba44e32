package nft

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const testName = "t"

// open connects to the nftables of a fresh namespace.
func open(t *testing.T) (*Conn, *nstest.NS) {
	t.Helper()
	ns := nstest.New(t)
	var c *Conn
	ns.Run(t, func() (err error) { c, err = Open(); return err })
	t.Cleanup(c.Close)
	return c, ns
}

// testTable has a set of every sort: plain, data map, verdict map, intervals.
func testTable() *desired.NFTTable {
	return &desired.NFTTable{
		Family: desired.NFTIPv6, Name: testName, Comment: "made by a test",
		Sets: []desired.NFTSet{
			{Name: "numbers", Key: []desired.NFTType{desired.NFTMark}, Comment: "some numbers"},
			{Name: "data", Key: []desired.NFTType{desired.NFTIPv6Addr, desired.NFTInetService}, Value: []desired.NFTType{desired.NFTIPv6Addr, desired.NFTInetService}},
			{Name: "ways", Key: []desired.NFTType{desired.NFTMark}, Value: []desired.NFTType{desired.NFTVerdict}},
			{Name: "ranges", Key: []desired.NFTType{desired.NFTIPv6Addr}, Interval: true},
		},
		Chains: []desired.NFTChain{
			{Name: "in", Hook: &desired.NFTHook{Type: "filter", Hook: 1, Priority: -5}, Rules: []desired.NFTRule{
				{Comment: "by the mark", Exprs: []expr.Any{
					&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
					&expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: "ways"},
				}},
				{Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "later"}}},
			}},
			{Name: "later"},
		},
	}
}

func addTable(def *desired.NFTTable) desired.NFTOp {
	return desired.NFTOp{Verb: desired.NFTAddTable, Family: def.Family, Table: def.Name, Def: def}
}

func addElement(e desired.NFTElement) desired.NFTOp {
	return desired.NFTOp{Verb: desired.NFTAddElement, Family: desired.NFTIPv6, Table: testName, Element: &e}
}

func deleteElement(e desired.NFTElement) desired.NFTOp {
	return desired.NFTOp{Verb: desired.NFTDeleteElement, Family: desired.NFTIPv6, Table: testName, Element: &e}
}

func num(v int) string { return string(binary.NativeEndian.AppendUint32(nil, uint32(v))) }

func address(last byte) string { return "\xfd" + strings.Repeat("\x00", 14) + string([]byte{last}) }

func mustApply(t *testing.T, c *Conn, ops ...desired.NFTOp) {
	t.Helper()
	if err := c.Apply(ops); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, c *Conn) *desired.NFTContents {
	t.Helper()
	got, err := c.Read(desired.NFTIPv6, testName)
	if err != nil || got == nil {
		t.Fatalf("Read = %v, %v, want the table", got, err)
	}
	slices.SortFunc(got.Elements, compareElements)
	return got
}

func compareElements(a, b desired.NFTElement) int {
	return cmp.Or(cmp.Compare(a.Set, b.Set), cmp.Compare(a.Key, b.Key))
}

func TestTableIsReadAsWritten(t *testing.T) {
	c, ns := open(t)
	if got, err := c.Read(desired.NFTIPv6, testName); got != nil || err != nil {
		t.Fatalf("Read of a table that is not there = %v, %v", got, err)
	}
	elements := []desired.NFTElement{
		{Set: "data", Key: address(1) + "\x00\x50\x00\x00", Value: address(2) + "\x1f\x90\x00\x00", Comment: "default/web:http"},
		{Set: "numbers", Key: num(1)},
		{Set: "numbers", Key: num(2), Comment: strings.Repeat("x", maxComment)},
		{Set: "ranges", Key: address(1), End: address(5)},
		{Set: "ranges", Key: address(5), End: address(8)},
		{Set: "ranges", Key: strings.Repeat("\xff", 16)},
		{Set: "ways", Key: num(3), Goto: "later", Comment: "three"},
	}
	ops := []desired.NFTOp{addTable(testTable())}
	for _, e := range elements {
		ops = append(ops, addElement(e))
	}
	mustApply(t, c, ops...)
	want := &desired.NFTContents{
		Comment: "made by a test", Elements: elements,
		Rules: map[string][]string{"in": {"by the mark", ""}, "later": nil},
		Sets:  map[string]bool{"numbers": true, "data": true, "ways": true, "ranges": true},
	}
	if got := mustRead(t, c); !reflect.DeepEqual(got, want) {
		t.Errorf("read back\n%+v\nwant\n%+v", got, want)
	}
	listed := ns.Exec(t, "nft", "list", "ruleset")
	for _, words := range []string{
		`comment "made by a test"`, `comment "some numbers"`, `comment "by the mark"`, "hook input priority filter - 5",
		`fd00::1 . 80 comment "default/web:http" : fd00::2 . 8080`, "fd00::1-fd00::4", "goto later",
	} {
		if !strings.Contains(listed, words) {
			t.Errorf("nft does not list %q:\n%s", words, listed)
		}
	}
	mustApply(t, c, desired.NFTOp{Verb: desired.NFTDeleteTable, Family: desired.NFTIPv6, Table: testName})
	if there, err := c.Exists(desired.NFTIPv6, testName); there || err != nil {
		t.Errorf("Exists after the deletion = %v, %v", there, err)
	}
}

// TestApplyAtHoldsTheRuleset: what was decided on an older ruleset is not done.
func TestApplyAtHoldsTheRuleset(t *testing.T) {
	c, ns := open(t)
	mustApply(t, c, addTable(testTable()))
	add := func(v int) []desired.NFTOp {
		return []desired.NFTOp{addElement(desired.NFTElement{Set: "numbers", Key: num(v)})}
	}
	generation := func() uint32 {
		g, err := c.Generation()
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	g := generation()
	if err := c.ApplyAt(g, nil); err != nil || generation() != g {
		t.Errorf("nothing to do: %v, generation %d became %d", err, g, generation())
	}
	if err := c.ApplyAt(g, add(1)); err != nil {
		t.Fatal(err)
	}
	if err := c.ApplyAt(g, add(2)); !errors.Is(err, ErrGeneration) {
		t.Errorf("after a change of our own: %v", err)
	}
	g = generation()
	ns.Exec(t, "nft", "add", "table", "ip", "somebody")
	if err := c.ApplyAt(g, add(2)); !errors.Is(err, ErrGeneration) {
		t.Errorf("after a change of another table: %v", err)
	}
	if err := c.ApplyAt(generation(), append(add(2), desired.NFTOp{Verb: desired.NFTDeleteTable, Family: desired.NFTIPv4, Table: "nobody"})); !errors.Is(err, unix.ENOENT) {
		t.Errorf("an operation that cannot be: %v", err)
	}
	if got := mustRead(t, c).Elements; len(got) != 1 || got[0].Key != num(1) {
		t.Errorf("elements %+v, want only 1", got)
	}
}

// TestDynamicSet: what packets put into a set is not listed with the table, and there may be no more than was said.
func TestDynamicSet(t *testing.T) {
	c, ns := open(t)
	def := testTable()
	const size = 3
	def.Sets = append(def.Sets, desired.NFTSet{Name: "seen", Key: []desired.NFTType{desired.NFTMark}, Value: []desired.NFTType{desired.NFTIPv6Addr}, Dynamic: size})
	def.Chains[1].Rules = []desired.NFTRule{{Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Payload{DestRegister: 2, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16},
		&expr.Dynset{SrcRegKey: 1, SrcRegData: 2, SetName: "seen", Timeout: time.Minute},
	}}}
	mustApply(t, c, addTable(def))
	for i := range size + 1 {
		err := c.Apply([]desired.NFTOp{addElement(desired.NFTElement{Set: "seen", Key: num(i), Value: address(byte(i))})})
		if full := errors.Is(err, unix.ENFILE); full != (i == size) || err != nil && !full {
			t.Errorf("element %d of %d: error %v", i+1, size, err)
		}
	}
	if got := mustRead(t, c); !got.Sets["seen"] || len(got.Elements) != 0 {
		t.Errorf("read %+v, want the set without its elements", got)
	}
	if listed := ns.Exec(t, "nft", "list", "map", "ip6", testName, "seen"); !strings.Contains(listed, "flags dynamic,timeout") || !strings.Contains(listed, "fd00::2") {
		t.Errorf("nft lists\n%s", listed)
	}
}

func TestChainsComeAndGo(t *testing.T) {
	c, _ := open(t)
	chain := desired.NFTChain{Name: "more", Rules: []desired.NFTRule{{Comment: "one", Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: "later"}}}}}
	way := desired.NFTElement{Set: "ways", Key: num(9), Goto: "more"}
	op := func(v desired.NFTVerb) desired.NFTOp {
		return desired.NFTOp{Verb: v, Family: desired.NFTIPv6, Table: testName, Chain: &chain}
	}
	mustApply(t, c, addTable(testTable()), op(desired.NFTAddChain), addElement(way))
	if got := mustRead(t, c).Rules["more"]; !slices.Equal(got, []string{"one"}) {
		t.Errorf("the new chain has rules %q", got)
	}
	mustApply(t, c, deleteElement(way), op(desired.NFTDeleteChain))
	if _, there := mustRead(t, c).Rules["more"]; there {
		t.Error("the chain is still there")
	}
}

func TestSetsComeAndGo(t *testing.T) {
	c, _ := open(t)
	set := desired.NFTSet{Name: "more", Key: []desired.NFTType{desired.NFTMark}}
	chain := desired.NFTChain{Name: "later", Rules: []desired.NFTRule{{Comment: "by the set", Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: "more"}}}}}
	op := func(v desired.NFTVerb) desired.NFTOp {
		return desired.NFTOp{Verb: v, Family: desired.NFTIPv6, Table: testName, Chain: &chain, Set: &set}
	}
	mustApply(t, c, addTable(testTable()), op(desired.NFTAddSet), addElement(desired.NFTElement{Set: "more", Key: num(1)}), op(desired.NFTAddChain))
	if got := mustRead(t, c); !got.Sets["more"] || len(got.Elements) != 1 || !slices.Equal(got.Rules["later"], []string{"by the set"}) {
		t.Errorf("the kernel has %+v", got)
	}
	chain.Rules[0].Comment = "another one"
	mustApply(t, c, op(desired.NFTFlushChain), op(desired.NFTAddChain))
	if got := mustRead(t, c).Rules["later"]; !slices.Equal(got, []string{"another one"}) {
		t.Errorf("the rewritten chain has rules %q", got)
	}
	if err := c.Apply([]desired.NFTOp{op(desired.NFTDeleteSet)}); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "delete set more of table ip6") {
		t.Errorf("a set in use: error %v", err)
	}
	mustApply(t, c, op(desired.NFTFlushChain), op(desired.NFTDeleteSet))
	if got := mustRead(t, c); got.Sets["more"] || len(got.Elements) > 0 || len(got.Rules["later"]) > 0 {
		t.Errorf("left: %+v", got)
	}
}

// TestManyTransactions cuts more elements than one transaction may hold, and never between joined ones.
func TestManyTransactions(t *testing.T) {
	c, _ := open(t)
	c.limit = 10_000
	mustApply(t, c, addTable(testTable()))
	const n = 10_000
	var ops []desired.NFTOp
	for i := range n {
		ops = append(ops, addElement(desired.NFTElement{Set: "numbers", Key: num(i), Comment: "a comment to make it long"}))
	}
	mustApply(t, c, ops...)
	if got := len(mustRead(t, c).Elements); got != n {
		t.Errorf("%d elements arrived of %d", got, n)
	}
	for i := range ops {
		ops[i].Verb = desired.NFTDeleteElement
		ops[i].Join = i > 0
	}
	bad := deleteElement(desired.NFTElement{Set: "numbers", Key: num(n)})
	bad.Join = true
	if err := c.Apply(append(ops, bad)); !errors.Is(err, unix.ENOENT) {
		t.Fatalf("deleting what is not there: error %v, want ENOENT", err)
	}
	if got := len(mustRead(t, c).Elements); got != n {
		t.Errorf("a joined transaction failed, yet %d elements of %d are left", got, n)
	}
	mustApply(t, c, ops...)
	if got := len(mustRead(t, c).Elements); got != 0 {
		t.Errorf("%d elements are left", got)
	}
}

func TestRefusalNamesTheCause(t *testing.T) {
	c, _ := open(t)
	mustApply(t, c, addTable(testTable()))
	before := mustRead(t, c)
	err := c.Apply([]desired.NFTOp{
		addElement(desired.NFTElement{Set: "numbers", Key: num(1)}),
		addElement(desired.NFTElement{Set: "ways", Key: num(1), Goto: "nowhere", Comment: "default/web"}),
	})
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "(default/web) to ways of table ip6 t") {
		t.Errorf("error %v, want ENOENT for the element of ways", err)
	}
	if after := mustRead(t, c); !reflect.DeepEqual(after, before) {
		t.Errorf("the refused transaction left\n%+v", after)
	}
	broken := testTable()
	broken.Name = "u"
	broken.Chains[1].Rules = []desired.NFTRule{{Comment: "wrong", Exprs: []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: "missing"}}}}
	if err := c.Check([]desired.NFTOp{addTable(broken)}); err == nil || !strings.Contains(err.Error(), "rule 1 of chain later (wrong)") {
		t.Errorf("Check of a broken table: error %v, want one that names the rule", err)
	}
	broken.Chains[1].Rules = nil
	if err := c.Check([]desired.NFTOp{addTable(broken)}); err != nil {
		t.Errorf("Check of a good table: %v", err)
	}
	if there, err := c.Exists(desired.NFTIPv6, "u"); there || err != nil {
		t.Errorf("Check made the table: %v, %v", there, err)
	}
	mustApply(t, c, addElement(desired.NFTElement{Set: "numbers", Key: num(1)})) // the connection is fit for more
}

// TestRangesChange replaces one list of disjoint ranges by another in one transaction, over and over.
func TestRangesChange(t *testing.T) {
	c, _ := open(t)
	mustApply(t, c, addTable(testTable()))
	rng := rand.New(rand.NewPCG(1, 2))
	var old []desired.NFTElement
	for round := range 200 {
		next := randomRanges(rng)
		var ops []desired.NFTOp
		for _, e := range old {
			if !slices.Contains(next, e) {
				ops = append(ops, deleteElement(e))
			}
		}
		for _, e := range next {
			if !slices.Contains(old, e) {
				ops = append(ops, addElement(e))
			}
		}
		if err := c.Apply(ops); err != nil {
			t.Fatalf("round %d, from %x to %x: %v", round, old, next, err)
		}
		if got := mustRead(t, c).Elements; !slices.Equal(got, next) {
			t.Fatalf("round %d: read %x, want %x", round, got, next)
		}
		old = next
	}
}

func randomRanges(rng *rand.Rand) (out []desired.NFTElement) {
	for at := byte(0); at < 200; {
		at += byte(rng.IntN(20))
		end := at + 1 + byte(rng.IntN(20))
		out = append(out, desired.NFTElement{Set: "ranges", Key: address(at), End: address(end)})
		at = end
	}
	if rng.IntN(2) == 0 {
		out[len(out)-1].End = "" // to the last address
	}
	return out
}

func TestListingWhileItChanges(t *testing.T) {
	c, ns := open(t)
	mustApply(t, c, addTable(testTable()))
	var other *Conn
	ns.Run(t, func() (err error) { other, err = Open(); return err })
	defer other.Close()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { // pairs come and go: always an even number of elements
		for i := 0; ; i += 2 {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			const kept = 500
			var ops []desired.NFTOp
			for _, k := range []int{i, i + 1} {
				ops = append(ops, addElement(desired.NFTElement{Set: "numbers", Key: num(k)}))
			}
			for _, k := range []int{i - kept, i - kept + 1} {
				if k >= 0 {
					ops = append(ops, deleteElement(desired.NFTElement{Set: "numbers", Key: num(k)}))
				}
			}
			if err := other.Apply(ops); err != nil {
				done <- fmt.Errorf("pair %d: %w", i, err)
				return
			}
		}
	}()
	for range 50 {
		got, err := c.consistent(desired.NFTIPv6, testName)
		if err == nil && len(got.Elements)%2 != 0 {
			t.Errorf("listed %d elements: half a transaction", len(got.Elements))
		}
		if err != nil && !errors.Is(err, errChanged) {
			t.Error(err)
		}
		if got, err = c.Read(desired.NFTIPv6, testName); err != nil || got == nil {
			t.Errorf("Read = %v, %v, though the table is there all the time", got, err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// FuzzDecode feeds the decoders what no kernel would send: they must neither crash nor hang.
func FuzzDecode(f *testing.F) {
	var b buffer
	m := b.begin(1, 2, 3, 4, 5)
	tx := &transaction{}
	tx.element(&desired.NFTElement{Key: address(1), Value: num(1), Goto: "", Comment: "c"}, desired.NFTAddElement)
	tx.element(&desired.NFTElement{Key: num(1), Goto: "chain", End: num(2)}, desired.NFTAddElement)
	b = append(b, tx.buf...)
	b.end(m)
	f.Add([]byte(b))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = split(data, func(h header, payload []byte) { _ = answer(h, payload) })
		var bad error
		var marks []mark
		for _, b := range attrs(data, &bad) {
			marks = append(marks, decodeElement("s", b, &bad))
		}
		ranges(marks)
		if c := comment(commentOfElement, data); strings.Contains(c, "\x00") {
			t.Errorf("comment %q holds a NUL", c)
		}
		if fields(data).get(1) != nil && len(data) < attrHeader {
			t.Error("an attribute out of nothing")
		}
	})
}
