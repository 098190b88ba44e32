package main

import (
	"strings"
	"testing"

	"github.com/braidnet/braid/cni/antispoof"
	"github.com/braidnet/braid/cni/hostport"
	masq "github.com/braidnet/braid/cni/masquerade"
	"github.com/braidnet/braid/cni/tables"
)

// TestLayoutsAreWrittenDown: a table whose sets, chains or rules change is told apart from that of the version before.
func TestLayoutsAreWrittenDown(t *testing.T) {
	for _, g := range []tables.Group{antispoof.Tables, antispoof.RoutedTables, hostport.Tables, masq.Tables} {
		for _, table := range g() {
			if want := "layout " + tables.Digest(table); !strings.HasSuffix(table.Comment, want) {
				t.Errorf("table %s %s says %q: its package has to give tables.Seal the digest of %q", table.Family, table.Name, table.Comment, want)
			}
		}
	}
}
