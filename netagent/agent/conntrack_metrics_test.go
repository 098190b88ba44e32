package agent

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestConntrackTable(t *testing.T) {
	const head = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop\n"
	for text, want := range map[string]uint64{
		head + "0 0 0 0 0 0 0 0 0 0 0000000a 0\n0 0 0 0 0 0 0 0 0 0 00000001 0\n": 11,
		head: 0,
	} {
		if n, ok := sumColumn([]byte(text), "drop"); !ok || n != want {
			t.Errorf("%q: %d, %v, want %d", text, n, ok, want)
		}
	}
	for _, text := range []string{"", "found new\n0 0\n", head + "0 0\n", head + "0 0 0 0 0 0 0 0 0 0 x 0\n"} {
		if n, ok := sumColumn([]byte(text), "drop"); ok {
			t.Errorf("%q: %d", text, n)
		}
	}
	if n := testutil.CollectAndCount(nodeConnections); n != 3 {
		t.Errorf("this machine's table gives %d numbers of 3", n)
	}
}
