package testenv

import "testing"

func TestRedisAnswers(t *testing.T) {
	if socket := Redis(t); !answersPing(socket) {
		t.Error("redis-server started, but does not answer")
	}
}
