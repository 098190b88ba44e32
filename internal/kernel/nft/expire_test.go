package nft

import (
	"errors"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"golang.org/x/sys/unix"
)

func TestWhichKernelsExpireElements(t *testing.T) {
	for release, want := range map[string]bool{"6.12.0": true, "6.18.44-x": true, "7.0-rc1": true, "6.11.9": false, "5.15.0-91-generic": false, "": false, "odd": false} {
		if got := expires(release); got != want {
			t.Errorf("%q: %v, want %v", release, got, want)
		}
	}
}

// TestExpire: elements that are told to expire go, others stay, and their keys can be had again.
func TestExpire(t *testing.T) {
	if !CanExpire() {
		t.Skip("needs Linux 6.12")
	}
	c, _ := open(t)
	def := testTable()
	for i := range def.Sets[:2] {
		def.Sets[i].Expiring = true
	}
	stays := desired.NFTElement{Set: "numbers", Key: num(1), Comment: "stays"}
	goes := desired.NFTElement{Set: "numbers", Key: num(2), Comment: "goes"}
	maps := desired.NFTElement{Set: "data", Key: address(1) + num(1), Value: address(2) + num(2), Comment: "goes"}
	if err := c.Apply([]desired.NFTOp{addTable(def), addElement(stays), addElement(goes), addElement(maps)}); err != nil {
		t.Fatal(err)
	}
	other := maps
	other.Value = address(3) + num(3)
	if err := c.Apply([]desired.NFTOp{expireElement(other)}); !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
		t.Errorf("an element whose key somebody else has expired: %v", err)
	}
	before, after := time.Now(), time.Duration(0)
	if err := c.Apply([]desired.NFTOp{expireElement(goes), expireElement(maps)}); err != nil {
		t.Fatal(err)
	}
	for list := mustElements(t, c); len(list) != 1 || list[0] != stays; list = mustElements(t, c) {
		if after = time.Since(before); after > 5*time.Second {
			t.Fatalf("after %s there is %+v, want only %+v", after, list, stays)
		}
		time.Sleep(time.Millisecond)
	}
	goes.Comment = "somebody else's"
	if err := c.Apply([]desired.NFTOp{addElement(goes), addElement(other)}); err != nil {
		t.Fatal(err)
	}
	if list := mustElements(t, c); len(list) != 3 {
		t.Errorf("keys of expired elements cannot be had again: %+v", list)
	}
	if list, err := c.Elements(desired.NFTIPv4, testName); err != nil || list != nil {
		t.Errorf("a table that is not there has %v, %v", list, err)
	}
}

func expireElement(e desired.NFTElement) desired.NFTOp {
	op := addElement(e)
	op.Verb = desired.NFTExpireElement
	return op
}

func mustElements(t *testing.T, c *Conn) []desired.NFTElement {
	t.Helper()
	list, err := c.Elements(desired.NFTIPv6, testName)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
