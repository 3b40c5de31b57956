package asterisktest

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

// ariRequest makes one request of ARI.
func ariRequest(ctx context.Context, method, url, user, password string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(user, password)
	req.Close = true // nothing is kept that a test would have to close
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %.200s", method, url, resp.Status, body)
	}
	return body, nil
}
