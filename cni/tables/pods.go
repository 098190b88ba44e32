package tables

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/nft"
	"golang.org/x/sys/unix"
)

// Want is what a pod is to have in the table of a family.
type Want func(desired.NFTFamily) []desired.NFTElement

// Put gives the pod behind a link what it is to have, and nothing else. Keys have to be the pod's alone: pods are not
// made to wait for each other.
func (g Group) Put(link string, want Want) error {
	conn, err := Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	whole, quick := true, []desired.NFTOp(nil)
	list := g()
	for i := range list {
		t := &list[i]
		comment, err := conn.Comment(t.Family, t.Name)
		whole = whole && err == nil && comment == t.Comment
		quick = append(quick, Contents{t.Family: {}}.Change(t, want(t.Family), false)...)
	}
	if whole && conn.Apply(quick) == nil {
		return nil
	}
	return g.Edit(func(have Contents) (ops []desired.NFTOp, err error) {
		for i := range list {
			t := &list[i]
			var others []desired.NFTElement
			if c := have[t.Family]; c != nil {
				_, others = Of(link, c.Elements)
			}
			ops = append(ops, have.Change(t, append(others, want(t.Family)...), true)...)
		}
		return ops, nil
	})
}

// Taken is an element that was taken away.
type Taken struct {
	Family desired.NFTFamily
	Table  string
	desired.NFTElement
}

// expiryPatience bounds the wait for elements to expire, which takes the kernel a tick of 10 ms at most.
const expiryPatience = 100 * time.Millisecond

// Take takes away what the pod behind a link has in tables, and returns it. When it returns without an error the kernel
// finds none of that any more. A kernel without nftables has nothing.
//
// Whoever deletes an element has to wait until no packet can be looking at it, and is kept waiting, as is everybody else
// who closes such a socket meanwhile: 25 ms and more, for many at once up to a second. So elements are told to expire
// where the kernel can do that.
func Take(link string, groups ...Group) (taken []Taken, err error) {
	conn, err := Open()
	if errors.Is(err, ErrNone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var where []desired.NFTTable
	for _, g := range groups {
		where = append(where, g()...)
	}
	verb, asked := desired.NFTDeleteElement, time.Time{}
	if nft.CanExpire() {
		verb = desired.NFTExpireElement
	}
	for tries := 0; tries < editTries; {
		generation, err := conn.Generation()
		if err != nil {
			return taken, err
		}
		its, err := of(conn, link, where)
		if err != nil || len(its) == 0 {
			return taken, err
		}
		taken = merge(taken, its)
		where = slices.DeleteFunc(where, func(t desired.NFTTable) bool {
			return !slices.ContainsFunc(its, func(x Taken) bool { return x.Family == t.Family && x.Table == t.Name })
		})
		if verb == desired.NFTExpireElement && !asked.IsZero() {
			if time.Since(asked) < expiryPatience {
				time.Sleep(time.Millisecond / 2) // the kernel tells nobody when elements have expired
				continue
			}
			verb = desired.NFTDeleteElement
		}
		tries++
		if verb == desired.NFTExpireElement {
			if conn.Apply(changes(verb, its)) == nil {
				asked = time.Now()
			} else { // such as sets of a version that knew no expiry, or a key that somebody else has by now
				verb = desired.NFTDeleteElement
			}
			continue
		}
		// What was read has to hold: a key that somebody else has by now is not to be deleted.
		if err := conn.ApplyAt(generation, changes(verb, its)); err != nil && !errors.Is(err, nft.ErrGeneration) && !errors.Is(err, unix.ENOENT) {
			return taken, err
		}
	}
	return taken, fmt.Errorf("nftables: what %s has is still there after %d tries to remove it: is something writing tables without pause?", link, editTries)
}

// of lists what a link has in tables.
func of(conn *nft.Conn, link string, where []desired.NFTTable) (its []Taken, err error) {
	for _, t := range where {
		list, err := conn.Elements(t.Family, t.Name)
		if err != nil {
			return nil, err
		}
		mine, _ := Of(link, list)
		for _, e := range mine {
			its = append(its, Taken{t.Family, t.Name, e})
		}
	}
	return its, nil
}

func merge(list, more []Taken) []Taken {
	for _, m := range more {
		if !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

func changes(verb desired.NFTVerb, list []Taken) (ops []desired.NFTOp) {
	for i := range list {
		ops = append(ops, desired.NFTOp{Verb: verb, Family: list[i].Family, Table: list[i].Table, Element: &list[i].NFTElement})
	}
	return ops
}

// Lacks says what of a pod's is not in the kernel; about is what the elements are for.
func (g Group) Lacks(want Want, about string) (missing []string, err error) {
	conn, err := Open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	have, err := g.Read(conn)
	if err != nil {
		return nil, err
	}
	list := g()
	for i := range list {
		t := &list[i]
		if text := Damage(t, have[t.Family]); text != "" {
			missing = append(missing, fmt.Sprintf("nftables table %s %s: %s", t.Family, t.Name, text))
			continue
		}
		for _, e := range want(t.Family) {
			if !have.Holds(t.Family, e) {
				missing = append(missing, fmt.Sprintf("set %s of nftables table %s %s lacks %s", e.Set, t.Family, t.Name, about))
			}
		}
	}
	return missing, nil
}
