package tables

import (
	"slices"
	"testing"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/nft"
)

// group is tables of two families with a set each.
func group(expiring bool) Group {
	return Lazy(func() []desired.NFTTable {
		var list []desired.NFTTable
		for _, f := range []desired.NFTFamily{desired.NFTIPv4, desired.NFTIPv6} {
			list = append(list, Seal(desired.NFTTable{Family: f, Name: "things", Sets: []desired.NFTSet{{Name: "of-pods", Key: []desired.NFTType{desired.NFTMark}, Expiring: expiring}}}, "a test", "1"))
		}
		return list
	})
}

func of1(link, key string) Want {
	return func(desired.NFTFamily) []desired.NFTElement {
		return []desired.NFTElement{{Set: "of-pods", Key: key, Comment: Owner{Link: link, Pod: "default/" + link}.Comment()}}
	}
}

// TestTake: what one pod has goes from every table, by expiry and where the kernel or the sets know none; what others
// have stays, and the same pod may come again at once.
func TestTake(t *testing.T) {
	can := nft.CanExpire
	t.Cleanup(func() { nft.CanExpire = can })
	for _, c := range []struct {
		name             string
		kernel, expiring bool
	}{{"expiry", can(), true}, {"a kernel before 6.12", false, true}, {"sets of an older version", true, false}} {
		nft.CanExpire = func() bool { return c.kernel }
		nstest.New(t).Run(t, func() error {
			g := group(c.expiring)
			for round := range 3 {
				if err := g.Put("brd-one", of1("brd-one", "1111")); err != nil {
					return err
				}
				if err := g.Put("brd-two", of1("brd-two", "2222")); err != nil {
					return err
				}
				taken, err := Take("brd-one", g)
				if err != nil {
					return err
				}
				if len(taken) != 2 || taken[0].Key != "1111" || taken[1].Key != "1111" {
					t.Errorf("%s, round %d: took %+v, want key 1111 of both tables", c.name, round, taken)
				}
				conn, err := Open()
				if err != nil {
					return err
				}
				have, err := g.Read(conn)
				conn.Close()
				if err != nil {
					return err
				}
				for f, contents := range have {
					if want := of1("brd-two", "2222")(f); !slices.Equal(contents.Elements, want) {
						t.Errorf("%s, round %d: table %s has %+v, want %+v", c.name, round, f, contents.Elements, want)
					}
				}
			}
			if taken, err := Take("brd-one", g); err != nil || len(taken) > 0 {
				t.Errorf("%s: took %+v, %v where nothing was left", c.name, taken, err)
			}
			return nil
		})
	}
}
