package nft

import (
	"testing"

	"errors"
	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"golang.org/x/sys/unix"
)

// TestOwnedTable: while its owner lives nobody else can take it away, a flush of everything included; it outlives its
// owner, and the next one takes it over.
func TestOwnedTable(t *testing.T) {
	reader, ns := open(t)
	table := testTable()
	table.Owned = true
	if err := reader.Check([]desired.NFTOp{addTable(table)}); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no tables that outlive their owner (Linux 6.9)")
	}
	other := func() (o *Conn) {
		ns.Run(t, func() (err error) { o, err = Open(); return err })
		return o
	}
	c := other()
	mustApply(t, c, addTable(table))
	own := desired.NFTOp{Verb: desired.NFTOwnTable, Family: table.Family, Table: table.Name}
	mustApply(t, c, own) // it is
	there := func(want bool, when string) {
		t.Helper()
		ns.Exec(t, "nft", "flush", "ruleset")
		if is, err := reader.Exists(table.Family, table.Name); is != want || err != nil {
			t.Errorf("%s: the table is there: %v, %v", when, is, err)
		}
	}
	there(true, "flushed by others")
	second := other()
	if err := second.Apply([]desired.NFTOp{own}); err == nil {
		t.Error("somebody else took it over")
	}
	if out, err := ns.Output("nft", "delete", "table", "ip6", testName); err == nil {
		t.Errorf("somebody else deleted it: %s", out)
	}
	ns.Exec(t, "nft", "list", "ruleset")
	c.Close()
	nstest.Wait(t, "the next owner", func() error { return second.Apply([]desired.NFTOp{own}) })
	there(true, "taken over")
	mustApply(t, second, addElement(desired.NFTElement{Set: "numbers", Key: num(1)}))
	second.Close()
	there(false, "without an owner")
}
