package status

import (
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/reconcile"
)

// TestTextAndOKSayTheSame: whoever reads the table and whoever asks for the exit code learn the same.
func TestTextAndOKSayTheSame(t *testing.T) {
	now := time.Now()
	for want, s := range map[string]reconcile.Status{
		"ok":       {Ready: true},
		"starting": {},
		"FAILING":  {Ready: true, Failing: true, Error: "no"},
		"applying": {Ready: true, Pending: true, Since: now},
		"LATE":     {Ready: true, Pending: true, Since: now.Add(-time.Minute)},
	} {
		s.Name = "services"
		r := Report{Synced: true, Subsystems: []reconcile.Status{s}}
		var text strings.Builder
		if err := r.Text(&text, now); err != nil || !strings.Contains(text.String(), "services   "+want+" ") {
			t.Errorf("want state %s (%v):\n%s", want, err, text.String())
		}
		if ok := want == "ok" || want == "applying"; r.OK() != ok {
			t.Errorf("OK() with state %s is %v", want, r.OK())
		}
	}
}
