package rig

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Facts says on what figures are taken, in one line: when, the kernel, the processors, the versions of programs (all know
// --version), and how busy the machine is with other things.
func Facts(programs ...string) string {
	var u unix.Utsname
	_ = unix.Uname(&u) // it cannot fail with a valid address
	b := &strings.Builder{}
	fmt.Fprintf(b, "%s; Linux %s; %d processors", time.Now().UTC().Format("2 January 2006 15:04 MST"), unix.ByteSliceToString(u.Release[:]), runtime.NumCPU())
	for _, name := range programs {
		if out, err := exec.Command(name, "--version").Output(); err == nil {
			fmt.Fprintf(b, "; %s", strings.TrimSpace(string(out)))
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(load), " ")
	fmt.Fprintf(b, "; load average at the start %s", first)
	return b.String()
}

// Percentile returns the smallest value that at least p of 100 are not above (the nearest rank), in a list of any order.
// Of nothing it is zero.
func Percentile[T cmp.Ordered](list []T, p int) (v T) {
	if len(list) == 0 {
		return v
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

// Short prints a time with three digits.
func Short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return Digits(d.Seconds()*1e6) + " µs"
	case d < time.Second:
		return Digits(d.Seconds()*1000) + " ms"
	}
	return Digits(d.Seconds()) + " s"
}

// Digits prints a number with three digits, or more when it has more before the point.
func Digits(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
